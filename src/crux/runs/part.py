"""The runs of a job: the job itself or, if it trains many SAEs at once, one run each, in folders within the job's."""

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crux.config.schema import Job, to_plain
from crux.runs.run_folder import RunFolder
from crux.runs.tracking import family, tracked

if TYPE_CHECKING:
    from crux.runs.mlflow import Tracker


@dataclass
class Part:
    """One run of a job."""

    name: str
    """Name of its folder within the job's; empty if it is the job itself."""
    config: Job
    folder: RunFolder
    failed: bool = False
    tracker: "Tracker | None" = None
    end: ExitStack = field(default_factory=ExitStack)
    """Closed when its MLflow run ends."""

    @property
    def prefix(self) -> str:
        """What its numbers begin with in the job's rows."""
        return f"{self.name}/" if self.name else ""

    def add_row(self, step: int, row: Mapping[str, float]) -> None:
        """Add its own numbers of a row to its history and to MLflow."""
        if own := {k.removeprefix(self.prefix): v for k, v in row.items() if k.startswith(self.prefix)}:
            self.folder.add_row(step, own)
            if self.tracker is not None:
                self.tracker.metrics(step, own)

    def write_results(self, metrics: Mapping[str, float]) -> None:
        """Write the final metrics to the run folder, and them and the folder's files to MLflow."""
        self.folder.write_metrics(metrics)
        if self.tracker is not None:
            self.tracker.metrics(0, metrics)  # one value each: MLflow draws bars
            self.tracker.files(self.folder.path)

    def fail(self, error: Exception) -> None:
        """End it as failed, once; the job continues without it."""
        if self.failed:
            return
        self.failed = True
        self.folder.fail(str(error), details="")
        print(f"crux: {self.name}: {error}", file=sys.stderr)
        if self.tracker is not None:
            self.tracker.tag("failure", str(error))
        self.end.__exit__(type(error), error, None)

    def finish(self) -> None:
        """End it as finished: from here on it is DONE."""
        self.folder.finish()
        self.end.close()


def make_parts(job: RunFolder, configs: Mapping[str, Job], *, resumed: bool) -> list[Part]:
    """Return the parts of a job; `configs` are theirs, by name, one with an empty name being the job itself."""
    return [
        Part(name, config, job.part(name, to_plain(config), anew=not resumed) if name else job)
        for name, config in configs.items()
    ]


def start_tracking(
    config: Job, job: RunFolder, parts: list[Part], ends: ExitStack, *, params: Mapping[str, object]
) -> None:
    """Start an MLflow run for each part; and one for the job, their parent, if it has several and is in no sweep.

    `ends` ends those that are still running.
    """
    if parts[0].name and not family(job.path):
        tracker = ends.enter_context(tracked(config, job, params=params))
        if tracker is not None:
            tracker.files(job.path)
    for part in parts:
        ends.push(part.end)
        part.tracker = part.end.enter_context(tracked(part.config, part.folder, params=params))
