"""The runs of a job: the job itself or, where it trains many SAEs at once, a run each, in folders within the job's."""

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crux.config.schema import Config, to_plain
from crux.runs.run_folder import RunFolder
from crux.runs.tracking import family, tracked

if TYPE_CHECKING:
    from crux.runs.mlflow import Tracker


@dataclass
class Part:
    """One run of a job."""

    name: str
    """Of its folder within the job's; empty where it is the job itself."""
    config: Config
    folder: RunFolder
    saes: range
    """Which of the job's SAEs are its own."""
    failed: bool = False
    tracker: "Tracker | None" = None
    end: ExitStack = field(default_factory=ExitStack)
    """Closed where its MLflow run ends."""

    @property
    def prefix(self) -> str:
        """Before its numbers in the job's rows."""
        return f"{self.name}/" if self.name else ""

    def add_row(self, step: int, row: Mapping[str, float]) -> None:
        """Takes its own numbers into its history and to MLflow."""
        if own := {k.removeprefix(self.prefix): v for k, v in row.items() if k.startswith(self.prefix)}:
            self.folder.add_row(step, own)
            if self.tracker is not None:
                self.tracker.metrics(step, own)

    def fail(self, error: Exception) -> None:
        """Ends it, once; the job goes on without it."""
        if self.failed:
            return
        self.failed = True
        self.folder.fail(str(error), details="")
        print(f"crux: {self.name}: {error}", file=sys.stderr)
        if self.tracker is not None:
            self.tracker.tag("failure", str(error))
        self.end.__exit__(type(error), error, None)

    def finish(self) -> None:
        """Its true end."""
        self.folder.finish()
        self.end.close()


def parts_of(job: RunFolder, runs: Mapping[str, Config], *, n_saes: int, anew: bool) -> list[Part]:
    """The parts of a job.

    Args:
        runs: configurations by name; one with an empty name is the job itself.
        n_saes: of all runs together.
        anew: what an earlier run left in their folders is not gone on with.
    """
    each = n_saes // len(runs)
    return [
        Part(name, one, job.part(name, to_plain(one), anew=anew) if name else job, range(i * each, (i + 1) * each))
        for i, (name, one) in enumerate(runs.items())
    ]


def start_tracking(config: Config, job: RunFolder, parts: list[Part], ends: ExitStack, *, n_latents: int) -> None:
    """An MLflow run for each part; and one for the job, their parent, where there are several and they are in no sweep.

    `ends` ends those that are still running.
    """
    if parts[0].name and not family(job.path):
        tracker = ends.enter_context(tracked(config, job, params={"n_latents": n_latents}))
        if tracker is not None:
            tracker.files(job.path)
    for part in parts:
        ends.push(part.end)
        part.tracker = part.end.enter_context(tracked(part.config, part.folder, params={"n_latents": n_latents}))
