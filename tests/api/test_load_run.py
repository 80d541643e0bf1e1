"""Tests that `crux.load_run` explains a path that is not a run, and that `crux.compare` makes one row per run."""

from pathlib import Path
from typing import Any

import pytest

import crux
from crux.runs.run_folder import RunFolder


def make_run(path: Path, *, metrics: dict[str, float] | None, **config: Any) -> RunFolder:
    """Write a run folder by hand; the run is finished if it has metrics, and unfinished otherwise."""
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
        metrics = {"final/l0": l0, "final/l0/pos0": 9.0, "final/kl": 0.5, "final/n_tokens": 64.0}
        make_run(tmp_path / f"sparsity={i}", metrics=metrics, sparsity=float(i), loss={"name": "e2e"})
    make_run(tmp_path / "sparsity=2", metrics=None, sparsity=2.0, loss={"name": "e2e"}).fail("no memory", details="")
    make_run(tmp_path / "sparsity=3", metrics=None, sparsity=3.0, loss={"name": "e2e"})
    return tmp_path


def test_load_run_explains_a_path_that_is_not_a_run(sweep: Path) -> None:
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
    # final/l0/pos0 (a single position) and final/n_tokens (no headline metric) are left out by default
    assert table.columns.tolist() == ["sparsity", "final/l0", "final/kl", "state"]
    assert table["sparsity"].tolist() == [0, 1, 2, 3]
    assert table["final/l0"].tolist()[:2] == [30, 20]
    assert table["final/l0"].isna().tolist() == [False, False, True, True]
    # without the failed run and the unfinished one there is no column `state`
    finished = crux.compare([sweep / "sparsity=0", crux.load_run(sweep / "sparsity=1")])
    assert finished.columns.tolist() == ["sparsity", "final/l0", "final/kl"]


def test_columns_can_be_chosen(sweep: Path) -> None:
    table = crux.compare(f"{sweep}/sparsity=[01]", metrics=["kl", "final/l0/pos0"], keys=["loss.name"])
    assert table.columns.tolist() == ["loss.name", "final/kl", "final/l0/pos0"]
    assert table.iloc[0].tolist() == ["e2e", 0.5, 9.0]
    table = crux.compare(f"{sweep}/sparsity=[01]", metrics="all", keys=[])
    # "all" leaves out only the metrics of a single position, later layer or hook point: here final/l0/pos0
    assert table.columns.tolist() == ["final/l0", "final/kl", "final/n_tokens"]
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


def test_row_names_keep_their_timestamp_if_two_runs_have_the_same_name(tmp_path: Path) -> None:
    names = [f"2026-01-0{day}_00-00-00_{name}" for day, name in enumerate(("e2e", "e2e", "local"), start=1)]
    for seed, name in enumerate(names):
        make_run(tmp_path / name, metrics={"final/l0": 1.0}, seed=seed)
    table = crux.compare(tmp_path)
    assert table.index.tolist() == names
    assert table["seed"].tolist() == [0, 1, 2]
    assert crux.compare(tmp_path / names[2]).index.tolist() == ["local"]


def test_a_job_with_several_runs_has_them_in_the_order_given(tmp_path: Path) -> None:
    job = tmp_path / "job"
    # the job's own folder has a configuration, but no metrics: these are in the folders of its runs
    make_run(job, metrics=None, sparsities=[5.0, 10.0, 0.5])
    for value in ("10", "0.5", "5"):
        make_run(job / f"sparsity={value}", metrics={"final/l0": float(value)}, sparsity=float(value))
    assert list(crux.load_run(job).runs) == ["sparsity=5", "sparsity=10", "sparsity=0.5"]
    for runs in (job, tmp_path):
        table = crux.compare(runs)
        assert table.index.tolist() == ["job/sparsity=5", "job/sparsity=10", "job/sparsity=0.5"]
        assert table["final/l0"].tolist() == [5, 10, 0.5]


def test_runs_deeper_than_one_folder_are_not_found(tmp_path: Path) -> None:
    make_run(tmp_path / "outputs" / "runs" / "e2e", metrics=None)
    with pytest.raises(crux.UserError, match="not a run folder"):
        crux.load_run(tmp_path)
    assert len(crux.compare(tmp_path / "outputs" / "runs")) == 1


def test_a_missing_metric_names_the_one_that_is_meant(sweep: Path) -> None:
    metrics = crux.load_run(sweep / "sparsity=0").metrics
    with pytest.raises(KeyError, match="kl: no such metric; did you mean final/kl"):
        _ = metrics["kl"]
