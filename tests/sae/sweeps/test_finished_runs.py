"""The order of a sweep's runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from crux.runs.run_folder import RunFolder
from crux.sae.sweeps.finished_runs import read_finished_runs, split_numbers


def make_run(folder: Path, name: str, config: dict[str, Any]) -> None:
    run = RunFolder.create(folder / name, config)
    (run.path / "metrics.json").write_text(json.dumps({"final/l0": 1.0}))
    run.finish()


@pytest.mark.parametrize(
    ("values", "config"),
    [
        (["8", "16", "128"], lambda value: {"sae": {"name": "topk", "k": int(value)}, "loss": {"name": "local"}}),
        (["0.5", "4", "10"], lambda value: {"sae": {"name": "relu"}, "sparsity": float(value)}),
        (["5", "40", "300"], lambda value: {"sae": {"name": "jumprelu"}, "target_l0": float(value), "sparsity": 1.0}),
        (["2", "9", "10"], lambda value: {"sae": {"name": "relu"}, "hook_point": f"blocks.{value}.hook_resid_pre"}),
    ],
)
def test_runs_are_sorted_by_number(values: list[str], config: Any, tmp_path: Path) -> None:
    for value in values:
        make_run(tmp_path, f"run={value}", config(value))
    assert list(read_finished_runs(tmp_path).metrics.index) == [f"run={value}" for value in values]


def test_numbers_in_a_text() -> None:
    assert split_numbers("blocks.10.hook") == ["blocks.", 10.0, ".hook"]
    assert sorted(["λ=1e+06", "λ=0.5", "λ=0.25", "λ=10", ""], key=split_numbers) == [
        "",
        "λ=0.25",
        "λ=0.5",
        "λ=10",
        "λ=1e+06",
    ]
