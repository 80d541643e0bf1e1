"""Run command lines of crux in forks of a process that has already imported everything, so that a case takes a second rather than ten."""

import atexit
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

RUNNING: set[int] = set()
"""The process ids of the forks whose end nobody has waited for yet."""


@atexit.register
def kill_running() -> None:
    """Kill the forks that run when this process ends, for example after Ctrl-C, with their children."""
    for pid in RUNNING:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


class CommandOutcome(NamedTuple):
    """What a command line did."""

    code: int
    """The exit code; minus the signal's number if a signal ended the process."""
    out: str
    """Standard output."""
    err: str
    """Standard error."""
    seconds: float
    """Wall-clock seconds."""
    cpu_seconds: float
    """CPU seconds of the process, user and system."""
    timed_out: bool
    """True if the process was killed because it exceeded its time limit."""

    @property
    def has_traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.err + self.out


def import_everything() -> None:
    """Import what any job imports. Call it once, before the first fork and before torch has started threads."""
    import torch

    torch.set_num_threads(1)
    import lightning  # noqa: F401
    import mlflow  # noqa: F401
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    import crux.cli  # noqa: F401
    import crux.pretraining.job  # noqa: F401
    import crux.sae.job  # noqa: F401
    import crux.toy.job  # noqa: F401


def start_command(
    words: Sequence[str], *, folder: Path, environment: Mapping[str, str], before: Callable[[], None] | None = None
) -> int:
    """Start a command line in a fork of this process and return the fork's process id.

    Args:
        words: the command line after `python src/main.py`.
        folder: receives the files `out` and `err`; the fork's working directory stays that of this process.
        environment: variables to set in the fork.
        before: called in the fork before the command line, for example to install a fault.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        RUNNING.add(pid)
        return pid
    RUNNING.clear()
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a campaign has its own handler
        os.setpgid(0, 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["main.py", *words]
        if before is not None:
            before()
        from crux.cli import main

        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except KeyboardInterrupt:
            code = 130
        threading._shutdown()  # waits for threads that are not daemons, as the interpreter's end does  # pyright: ignore[reportAttributeAccessIssue]
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait_for_command(pid: int, *, folder: Path, started: float, timeout: float) -> CommandOutcome:
    """Wait until a fork ends, kill it with its children after `timeout` seconds, and return its outcome.

    Args:
        started: `time.monotonic()` at its start.
    """
    timed_out = False
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            RUNNING.discard(pid)
            break
        if time.monotonic() - started > timeout:
            timed_out = True
            os.killpg(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            RUNNING.discard(pid)
            break
        time.sleep(0.01)
    return _read_outcome(folder, status, usage, seconds=time.monotonic() - started, timed_out=timed_out)


def run_command(
    words: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    timeout: float,
    before: Callable[[], None] | None = None,
) -> CommandOutcome:
    """Run a command line in a fork of this process to its end."""
    started = time.monotonic()
    pid = start_command(words, folder=folder, environment=environment, before=before)
    return wait_for_command(pid, folder=folder, started=started, timeout=timeout)


def _read_outcome(
    folder: Path, status: int, usage: resource.struct_rusage, *, seconds: float, timed_out: bool
) -> CommandOutcome:
    out, err = ((folder / name).read_text("utf-8", errors="replace") for name in ("out", "err"))
    return CommandOutcome(
        os.waitstatus_to_exitcode(status), out, err, seconds, usage.ru_utime + usage.ru_stime, timed_out
    )
