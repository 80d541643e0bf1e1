"""A reported case: what is run, what is observed, and whether that is the correct outcome."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.campaigns.forks import CommandOutcome, run_command

QUICK = (
    "debug=limit", "evaluation.tokens=512", "evaluation.val_tokens=512", "evaluation.latents=0", "tracking=none",
    "trainer.progress=false",
)  # fmt: skip
"""Overrides with which the main job takes seconds."""


class Observation(NamedTuple):
    """The outcome of a case."""

    correct: bool
    """True if the outcome is the correct one."""
    observed: str
    """What was observed, in one line."""


class Workplace:
    """A folder for the files of a case, and a function that runs command lines there and remembers them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands: list[str] = []

    def run(
        self, *words: str, timeout: float = 300, before: Callable[[], None] | None = None, **environment: str
    ) -> CommandOutcome:
        """Run a command line with its outputs in this folder."""
        shown = " ".join(w for w in words if w not in QUICK).replace(f"{self.folder}/", "")
        prefix = "".join(f"{key}={value} " for key, value in environment.items())
        self.commands.append(f"{prefix}python src/main.py {shown}")
        words = (*words, f"output_dir={self.folder / 'outputs'}")
        return run_command(
            words, folder=self.folder / "output", environment=environment, timeout=timeout, before=before
        )

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the newest run."""
        newest = max(
            (self.folder / "outputs" / "runs").glob("*/metrics.json"), key=lambda path: path.stat().st_mtime_ns
        )
        return json.loads(newest.read_text("utf-8"))

    def run_folder(self) -> Path:
        """Return the newest run folder."""
        return max((self.folder / "outputs" / "runs").iterdir(), key=lambda path: path.stat().st_mtime_ns)


class Case(NamedTuple):
    """A reported case."""

    number: int
    """Its number among the reported cases."""
    title: str
    """What is reported, in a few words."""
    correct: str
    """The correct outcome."""
    observe: Callable[[Workplace], Observation]
    """A function that runs the case."""


CASES: dict[int, Case] = {}
"""All cases by their number."""


def case(
    number: int, title: str, *, correct: str
) -> Callable[[Callable[[Workplace], Observation]], Callable[[Workplace], Observation]]:
    """Return a decorator that registers a function as the case with this number."""

    def register(observe: Callable[[Workplace], Observation]) -> Callable[[Workplace], Observation]:
        CASES[number] = Case(number, title, correct, observe)
        return observe

    return register


def expect_success(outcome: CommandOutcome, *, also: bool = True, observed: str = "") -> Observation:
    """Return a correct observation if the command ended with exit code 0, without a traceback, and `also` holds."""
    last = (outcome.err.strip().splitlines() or [""])[-1]
    text = ", ".join(part for part in (f"exit {outcome.code}", observed, last if outcome.code else "") if part)
    return Observation(outcome.code == 0 and not outcome.has_traceback and also, text)


def expect_refusal(outcome: CommandOutcome, *names: str) -> Observation:
    """Return a correct observation if the command was refused in one line, with exit code 2, that contains each of `names`."""
    lines = [line for line in outcome.err.splitlines() if line.strip()]
    correct = outcome.code == 2 and len(lines) == 1 and all(name in lines[0] for name in names)
    return Observation(correct, f"exit {outcome.code}: {' / '.join(lines[-2:])[:300]}")


def combine(observations: Sequence[Observation]) -> Observation:
    """Return one observation that is correct if all are."""
    return Observation(all(o.correct for o in observations), "; ".join(o.observed for o in observations))
