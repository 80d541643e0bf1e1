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
    """Return the command line that starts the job: `src/main.py loss=e2e layer=6`.

    MLflow's pages show what follows its last slash, so that overrides with slashes come first, an experiment's name as the last of them.
    """
    program = sys.argv[0] if sys.argv[0].endswith(("main.py", "crux")) else "src/main.py"
    overrides = _OVERRIDES.get()
    words = sys.argv[1:] if overrides is None else overrides
    shown_last = sorted(words, key=lambda word: 2 if "/" not in word else int(word.startswith("experiment=")))
    return shlex.join([program, *shown_last])
