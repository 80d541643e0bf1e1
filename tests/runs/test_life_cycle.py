"""The end of a job: once a run is DONE, nothing that fails makes it a failure."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

ENDS = ("tracking.flush_at_end", "life_cycle.create_new_run")
"""What ends after the run is done: the wait for MLflow, and the lock of the run folder."""


def break_end(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    """Let a context manager of `crux.runs` raise an error when it ends without one."""
    from contextlib import contextmanager
    from importlib import import_module

    import crux.runs.life_cycle as life_cycle

    module, function = name.split(".")
    before = getattr(import_module(f"crux.runs.{module}"), function)

    @contextmanager
    def broken(*arguments: object, **options: object):
        with before(*arguments, **options) as value:
            yield value
        raise error

    monkeypatch.setattr(life_cycle, function, broken)


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize(
    ("error", "line"),
    [(RuntimeError("a bug"), "RuntimeError: a bug"), (OSError(28, "No space left on device", "/disk"), "is done, but: /disk: No space")],
)  # fmt: skip
def test_an_error_after_the_end_leaves_a_run_done(
    name: str,
    error: Exception,
    line: str,
    run_crux: Callable[..., int],
    short_job: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    break_end(monkeypatch, name, error)
    assert run_crux(*short_job, "loss=local", "layer=4", "tracking=none", f"output_dir={tmp_path}") == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "DONE").exists()
    assert not (folder / "FAILED").exists()
    output = capsys.readouterr()
    assert line in output.err
    assert f"run folder  {folder}" in output.out  # the results are shown nevertheless


def test_a_stop_between_done_and_the_end_of_tracking_leaves_a_finished_run(
    run_crux: Callable[..., int], short_job: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import closing
    from sqlite3 import connect

    from crux.runs.database import prepare_database
    from crux.runs.run_folder import RunFolder

    prepare_database(tmp_path / "mlflow.db")  # the stop leaves too little time to create it
    finish = RunFolder.finish

    def finish_and_stop(folder: RunFolder) -> None:
        finish(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "finish", finish_and_stop)
    assert run_crux(*short_job, "loss=local", "layer=4", f"output_dir={tmp_path}") == 130
    assert len(list(tmp_path.glob("runs/*/DONE"))) == 1
    with closing(connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]


def test_an_error_in_the_end_of_one_run_does_not_reach_the_other_runs_of_a_job(
    run_crux: Callable[..., int],
    short_job: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from crux.runs.run_folder import RunFolder

    monkeypatch.setattr(RunFolder, "remove_leftovers", lambda folder: (folder.path / "absent").unlink())
    assert (
        run_crux(
            *short_job,
            "loss=local",
            "layer=4",
            "sparsities=[1,2]",
            "tracking=none",
            "resume=false",
            f"output_dir={tmp_path}",
        )
        == 0
    )
    marks = list(tmp_path.glob("runs/**/DONE"))
    assert len(marks) == 3  # of the job and of both SAEs
    assert capsys.readouterr().err.count("is done, but: ") == 3
    for mark in marks:
        if mark.parent.parent.name != "runs":
            assert json.loads((mark.parent / "metrics.json").read_text())


def test_an_error_before_the_end_fails(
    run_crux: Callable[..., int], short_job: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crux.runs.run_folder import RunFolder

    def finish(folder: RunFolder) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(RunFolder, "finish", finish)
    with pytest.raises(RuntimeError, match="a bug"):
        run_crux(*short_job, "loss=local", "layer=4", "tracking=none", f"output_dir={tmp_path}")
