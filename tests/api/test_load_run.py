"""`crux.load_run` says what it has found instead of a run; `crux.compare` makes one row per run."""

from pathlib import Path
from typing import Any

import pytest

import crux
from crux.runs.run_folder import RunFolder


def make_run(path: Path, *, metrics: dict[str, float] | None, **config: Any) -> RunFolder:
    folder = RunFolder.create(path, {"seed": 0, "output_dir": "x", **config})
    folder.add_row(1, {"train/loss": 2.0})
    if metrics is not None:
        folder.write_metrics(metrics)
        folder.finish()
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep with two finished jobs, a failed one and an unfinished one."""
    for i, l0 in enumerate((30.0, 20.0)):
        metrics = {"final/l0": l0, "final/l0/pos0": 9.0, "final/kl": 0.5}
        make_run(tmp_path / f"sparsity={i}", metrics=metrics, sparsity=float(i), loss={"name": "e2e"})
    make_run(tmp_path / "sparsity=2", metrics=None, sparsity=2.0, loss={"name": "e2e"}).fail("no memory", details="")
    make_run(tmp_path / "sparsity=3", metrics=None, sparsity=3.0, loss={"name": "e2e"})
    return tmp_path


def test_what_is_not_a_run_is_named(sweep: Path) -> None:
    sae = sweep / "sparsity=0" / "sae"
    sae.mkdir()
    (sae / "cfg.json").write_text("{}")
    (sweep / "empty").mkdir()
    for path, message in (
        (sweep / "nowhere", "no such folder"),
        (sweep / "sparsity=0" / "metrics.json", "is a file; a run folder is needed"),
        (sae, "holds an SAE; use crux.load_sae"),
        (sweep, r"holds 4 runs, such as .*sparsity=3; load one of them, or use crux\.compare"),
        (sweep / "empty", r"not a run folder \(it has no config\.yaml\)"),
    ):
        with pytest.raises(crux.UserError, match=message):
            crux.load_run(path)


def test_the_state_of_a_run(sweep: Path) -> None:
    states = {path.name: crux.load_run(path).state for path in sorted(sweep.iterdir())}
    assert states == {
        "sparsity=0": "finished", "sparsity=1": "finished", "sparsity=2": "failed: no memory", "sparsity=3": "unfinished",
    }  # fmt: skip


def test_a_table_has_the_keys_that_differ_and_the_metrics(sweep: Path) -> None:
    table = crux.compare(sweep)
    assert table.index.tolist() == [f"sparsity={i}" for i in range(4)]
    assert table.columns.tolist() == ["sparsity", "final/l0", "final/kl", "state"]
    assert table["sparsity"].tolist() == [0, 1, 2, 3]
    assert table["final/l0"].tolist()[:2] == [30, 20]
    assert table["final/l0"].isna().tolist() == [False, False, True, True]
    finished = crux.compare([sweep / "sparsity=0", crux.load_run(sweep / "sparsity=1")])
    assert finished.columns.tolist() == ["sparsity", "final/l0", "final/kl"]


def test_columns_can_be_chosen(sweep: Path) -> None:
    table = crux.compare(f"{sweep}/sparsity=[01]", metrics=["kl", "final/l0/pos0"], keys=["loss.name"])
    assert table.columns.tolist() == ["loss.name", "final/kl", "final/l0/pos0"]
    assert table.iloc[0].tolist() == ["e2e", 0.5, 9.0]
    for choice, message in (
        ({"metrics": ["l1"]}, "final/l1: not a metric of these runs; did you mean final/l0"),
        ({"keys": ["loss.nam"]}, r"loss\.nam: not a key of these configurations; did you mean loss\.name"),
    ):
        with pytest.raises(crux.UserError, match=message):
            crux.compare(sweep, **choice)


def test_nothing_to_compare_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(crux.UserError, match="no runs given"):
        crux.compare([])
    with pytest.raises(crux.UserError, match="no folder matches"):
        crux.compare(f"{tmp_path}/*")


def test_runs_with_the_same_name_are_told_apart_by_their_time(tmp_path: Path) -> None:
    times = "2026-01-01_00-00-00_", "2026-01-02_00-00-00_"
    for seed, time in enumerate(times):
        make_run(tmp_path / f"{time}e2e", metrics={"final/l0": 1.0}, seed=seed)
    table = crux.compare(tmp_path)
    assert table.index.tolist() == [f"{time}e2e" for time in times]
    assert table["seed"].tolist() == [0, 1]
