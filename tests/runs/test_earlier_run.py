"""A run folder has one owner: two starts never write to the same one, and a run that is being continued is not continued twice."""

import multiprocessing
import multiprocessing.synchronize
from contextlib import ExitStack
from pathlib import Path

import pytest

from crux.config.errors import UserError
from crux.config.schema import to_plain
from crux.runs.earlier_run import take_earlier_run
from crux.runs.entry import Entry
from crux.runs.leftovers import remove_leftovers
from crux.runs.lock import LockedError, lock_folder
from crux.runs.new_run import create_new_run
from crux.runs.record import entry_path
from crux.runs.run_folder import RunFolder
from tests.support.mlflow_runs import make_record
from tests.support.sae_jobs import compose_sae_job


def make_paths(barrier: multiprocessing.synchronize.Barrier, outputs: Path, rounds: int, results: Path) -> None:
    lines = []
    for _ in range(rounds):
        barrier.wait(timeout=60)
        with create_new_run(outputs, "local_L6", {"place": str(results)}) as run:
            lines.append(f"{run.path}\n")
            assert run.read_config() == {"place": str(results)}
    results.write_text("".join(lines))


def test_sixty_starts_of_four_at_once_share_no_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, starts, rounds = context.Barrier(4), 4, 60
    processes = [
        context.Process(target=make_paths, args=(barrier, tmp_path, rounds, tmp_path / f"{i}.txt"))
        for i in range(starts)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    paths = [line for i in range(starts) for line in (tmp_path / f"{i}.txt").read_text().splitlines()]
    assert len(paths) == len(set(paths)) == starts * rounds
    assert sorted(map(str, (tmp_path / "runs").iterdir())) == sorted(paths)  # no hidden folder stays


def test_the_folder_of_a_killed_start_is_removed_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    killed, living = (tmp_path / "runs" / f".{name}.new" for name in ("0a", "0b"))
    for hidden in (killed, living):
        hidden.mkdir(parents=True)
        (hidden / "config.yaml").touch()
    with lock_folder(living, what="a new run"):
        remove_leftovers(tmp_path)
        assert living.exists()
        assert not killed.exists()


def test_what_is_left_in_a_finished_run_is_removed(tmp_path: Path) -> None:
    older, newer = create_runs(tmp_path)
    for run in (older, newer):
        run.finish()
        (run.path / ".lock").touch()
        run.intermediate.mkdir()
    with lock_folder(newer.path, what="run"):  # by the process that finished it, which is about to end
        remove_leftovers(tmp_path)
        assert newer.intermediate.exists()
    assert not older.intermediate.exists()
    assert not list(older.path.glob(".*"))


def test_a_start_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("crux.runs.run_folder.write_text", fail)
    with pytest.raises(OSError, match="no space"), create_new_run(tmp_path, "a", {}):
        raise AssertionError("never here")
    assert not list((tmp_path / "runs").iterdir())


def create_runs(outputs: Path) -> list[RunFolder]:
    config = to_plain(compose_sae_job("loss=local", f"output_dir={outputs}"))
    return [RunFolder.create(outputs / "runs" / f"2026-01-0{day}_00-00-00_a", config) for day in (1, 2)]


def test_a_run_that_is_being_continued_is_passed_over_or_refused(tmp_path: Path) -> None:
    older, newer = create_runs(tmp_path)
    config = compose_sae_job("loss=local", f"output_dir={tmp_path}", "resume=true")
    with ExitStack() as first, ExitStack() as second, ExitStack() as third:
        for ends, expected in ((first, newer), (second, older)):
            taken = take_earlier_run(config, None, ends)
            assert taken is not None
            assert taken.path == expected.path
        with pytest.raises(LockedError, match=f"run {newer.path.name} is run by process .* wait for it, or stop it"):
            take_earlier_run(config, None, third)
        named = compose_sae_job("loss=local", f"output_dir={tmp_path}", f"resume_from={older.path}")
        with pytest.raises(LockedError, match=older.path.name):
            take_earlier_run(named, None, third)
    assert not list(tmp_path.rglob(".*"))  # no lock stays


def test_the_next_start_removes_what_a_killed_process_has_left_but_not_what_a_living_one_writes(tmp_path: Path) -> None:
    older, newer = create_runs(tmp_path)
    for folder in (older, newer):
        (folder.path / ".sae.1234.new").mkdir()
        (folder.path / ".sae.1234.new" / "cfg.json").touch()
        (folder.path / ".history.jsonl.1234").touch()  # not one of ours
        (folder.path / "checkpoints").mkdir()
        (folder.path / "checkpoints" / ".last.ckpt.0a1b2c3d.new").touch()
    config = compose_sae_job("loss=local", f"output_dir={tmp_path}", "resume=true")
    with lock_folder(newer.path, what="run"), ExitStack() as ends:
        take_earlier_run(config, None, ends)
    assert sorted(path.name for path in older.path.rglob(".*")) == [".history.jsonl.1234"]
    assert len(list(newer.path.rglob(".*"))) == 3


@pytest.mark.parametrize("run", ["", "sparsity=2"])
@pytest.mark.parametrize("how", ["resume", "resume_from"])
def test_a_done_job_is_taken_as_long_as_mlflow_does_not_have_all_its_runs(run: str, how: str, tmp_path: Path) -> None:
    older, folder = create_runs(tmp_path)
    older.finish()
    folder.finish()
    words = f"resume_from={folder.path}" if how == "resume_from" else "resume=true"
    config = compose_sae_job("loss=local", f"output_dir={tmp_path}", words)
    entry = Entry.create(entry_path(tmp_path, folder.path / run), make_record(folder.path / run, tmp_path))
    assert entry is not None
    with ExitStack() as ends:
        taken = take_earlier_run(config, None, ends)
    assert taken is not None
    assert taken.path == folder.path
    entry.remove()
    with ExitStack() as ends, pytest.raises(UserError, match="done"):
        take_earlier_run(config, None, ends)


@pytest.mark.parametrize("name", ["DONE", "history.jsonl", "mlflow_run_id"])
def test_a_folder_in_the_place_of_a_file_is_named(name: str, tmp_path: Path) -> None:
    _, newer = create_runs(tmp_path)
    (newer.path / name).mkdir()
    config = compose_sae_job("loss=local", f"output_dir={tmp_path}", f"resume_from={newer.path}")
    with pytest.raises(UserError, match=f"{name} must be a file; remove it"), ExitStack() as ends:
        take_earlier_run(config, None, ends)
