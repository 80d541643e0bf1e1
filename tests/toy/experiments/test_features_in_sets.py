"""Correlated and anticorrelated features, and the collapse of pairs: shortened runs, rejected options, and the small settings."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from crux.toy.experiments.pca_collapse import EXACT_RANGES, PAPER_RANGES, expected_counts

QUIET = ("trainer.progress=false", "tracking=none")


def run_experiment(run_crux: Callable[..., int], outputs: Path, *given: str) -> Path:
    assert run_crux(*QUIET, *given, f"output_dir={outputs}") == 0
    (folder,) = (outputs / "runs").iterdir()
    return folder


def read_metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.slow
def test_correlated_sets_form_bases_or_narrow_cones(run_crux: Callable[..., int], tmp_path: Path) -> None:
    """The training is so short that polishing does most of the work; the wide model has no exact loss and is only trained."""
    folder = run_experiment(
        run_crux, tmp_path, "experiment=toy/correlated", "toy.sizes=[[4,2,2],[6,2,3],[10,5,2]]", "toy.densities=[0.04]",
        "trainer.max_steps=300", "trainer.batch=256", "toy.held_out=4096",
    )  # fmt: skip
    assert read_metrics(folder)["final/checks"] == 4
    assert read_metrics(folder)["final/checks_failed"] == 0
    arrays = load_file(folder / "arrays.safetensors")
    assert {name: arrays[f"{name}/W"].shape for name in ("4_2", "6_2", "10_5")} == {
        "4_2": (1, 2, 4),
        "6_2": (1, 2, 6),
        "10_5": (1, 5, 10),
    }
    assert (folder / "figures" / "sets.png").stat().st_size > 10_000


def test_anticorrelated_pairs_are_antipodal(run_crux: Callable[..., int], tmp_path: Path) -> None:
    folder = run_experiment(
        run_crux, tmp_path, "experiment=toy/anticorrelated", "toy.densities=[0.05]", "trainer.max_steps=200",
        "trainer.batch=256", "toy.held_out=1024",
    )  # fmt: skip
    assert read_metrics(folder)["final/checks"] == 3
    assert read_metrics(folder)["final/checks_failed"] == 0


@pytest.mark.slow
def test_dense_pairs_collapse_and_sparse_ones_do_not(run_crux: Callable[..., int], tmp_path: Path) -> None:
    folder = run_experiment(
        run_crux, tmp_path, "experiment=toy/pca_collapse", "toy.densities=[0.45,0.18]", "toy.seeds=8", "trainer.max_steps=100",
        "toy.held_out=1024",
    )  # fmt: skip
    assert read_metrics(folder)["final/collapsed/0.45"] == 3
    assert read_metrics(folder)["final/collapsed/0.18"] == 2
    assert read_metrics(folder)["final/checks_failed"] == 0
    assert "| 0.18 |" in (folder / "report.md").read_text()


def test_expected_counts_are_those_of_the_paper_or_of_the_exact_optimum() -> None:
    assert [expected_counts(p) for p in (0.03, 0.1, 0.18, 0.3, 0.45, 0.6)] == [
        [0, 0],
        [1, 1],
        [2, 2],
        [3, 2],
        [3, 3],
        [],
    ]
    assert expected_counts(0.22) == [2]  # the paper has no value there
    for ranges in (PAPER_RANGES, EXACT_RANGES):
        assert all(low < high for low, high in ranges.values())


@pytest.mark.parametrize(
    ("experiment", "given"),
    [
        ("correlated", "toy.together=independent"),
        ("correlated", "toy.n_hidden=3"),
        ("anticorrelated", "toy.together=correlated"),
        ("anticorrelated", "toy.n_sets=1"),
        ("pca_collapse", "toy.n_sets=2"),
        ("pca_collapse", "toy.sizes=[[6,2,3]]"),
    ],
)
def test_other_features_are_rejected(experiment: str, given: str, error_message: Callable[..., str]) -> None:
    assert error_message(*QUIET, f"experiment=toy/{experiment}", given).startswith("crux: ")


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["correlated", "anticorrelated", "pca_collapse"])
def test_small_settings_reproduce_the_paper(experiment: str, run_crux: Callable[..., int], tmp_path: Path) -> None:
    folder = run_experiment(run_crux, tmp_path, f"experiment=toy/{experiment}")
    assert read_metrics(folder)["final/checks_failed"] == 0
