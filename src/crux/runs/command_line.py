"""The command line of the job that runs in this process, which MLflow shows as the source of a run."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_OVERRIDES: ContextVar[Sequence[str] | None] = ContextVar("overrides", default=None)


@contextmanager
def job_overrides(overrides: Sequence[str]) -> Iterator[None]:
    """Keep the overrides of the job that runs in this block; a job of a sweep has its own, not those of the process."""
    token = _OVERRIDES.set(tuple(overrides))
    try:
        yield
    finally:
        _OVERRIDES.reset(token)


def command_line() -> str:
    """Return the command line that starts the job, with which MLflow's pages also begin: `src/main.py loss=e2e layer=6`."""
    program = sys.argv[0] if sys.argv[0].endswith(("main.py", "crux")) else "src/main.py"
    words = _OVERRIDES.get()
    return shlex.join([program, *(sys.argv[1:] if words is None else words)])
