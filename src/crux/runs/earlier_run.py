"""Find the earlier run that a job continues, and hold the lock of its folder."""

from contextlib import ExitStack
from pathlib import Path

from crux.config.errors import UserError
from crux.config.schema import Job, to_plain
from crux.runs.leftovers import remove_leftovers
from crux.runs.lock import LockedError, lock_folder
from crux.runs.record import is_unsent
from crux.runs.run_folder import RunFolder, find_same_run, list_differences, list_unfinished, open_unfinished


def lock_run(path: Path, ends: ExitStack) -> None:
    """Lock a run folder until a stack is closed, so that no other process writes there.

    Raises:
        LockedError: if another process runs or continues the run.
    """
    ends.enter_context(lock_folder(path, what=f"run {path.name}"))


def take_earlier_run(config: Job, folder: Path | None, ends: ExitStack) -> RunFolder | None:
    """Return the earlier run of this job, so that it is continued, and lock its folder; None if the job starts anew.

    `resume_from` names the run. `resume=true` looks in the outputs folder for the newest one that no other process is running. A sweep
    looks in the job's folder in any case, and the run there may also be finished. What killed processes have left in the folder is removed.
    A finished run that MLflow does not have completely is returned too.

    Args:
        folder: the run folder, if a sweep has assigned one; it is locked even if the job starts anew.
        ends: a stack that releases the lock when it is closed.

    Raises:
        UserError: if the run does not exist, has another configuration, or is run by another process.
    """
    plain = to_plain(config)
    if folder is None:
        remove_leftovers(Path(config.output_dir))
    if config.resume_from is None and folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        lock_run(folder, ends)
        earlier = find_same_run(folder, plain)
        if earlier is not None:
            earlier.remove_leftovers()
        return earlier
    if config.resume_from is not None:
        named = RunFolder(Path(config.resume_from))
        if named.done and is_unsent(config, named):  # its process was killed before MLflow had everything
            return named
        candidates = [open_unfinished(Path(config.resume_from), plain)]
    elif config.resume:
        candidates = list_unfinished(Path(config.output_dir), plain)
    else:
        return None
    running: LockedError | None = None
    for run in candidates:
        with ExitStack() as attempt:
            try:
                lock_run(run.path, attempt)
            except LockedError as error:
                running = running or error
                continue
            if run.done:  # its process has finished it in the meantime
                continue
            run.check_kinds()
            run.remove_leftovers()
            ends.push(attempt.pop_all())
            return run
    if running is not None:
        raise running
    done = find_done_run(config)
    if done is not None and is_unsent(config, done):
        return done
    note = f"; {done.path} is done{done.advice_to_train_further()}" if done is not None else ""
    place = Path(config.output_dir) / "runs"
    raise UserError(f"resume=true: no unfinished run with this configuration in {place}{note}")


def find_done_run(config: Job) -> RunFolder | None:
    """Return the run with this configuration that has finished last; None if there is none."""
    marks = list((Path(config.output_dir) / "runs").glob("*/DONE"))
    for mark in sorted(marks, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            if not list_differences(RunFolder(mark.parent).read_config(), to_plain(config)):
                return RunFolder(mark.parent)
        except UserError:
            continue  # the file cannot be read
    return None
