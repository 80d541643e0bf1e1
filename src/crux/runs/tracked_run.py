"""The runs of a job: usually the job itself; one run per SAE, in folders within the job's, if it trains many SAEs at once."""

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crux.config.schema import Job, to_plain
from crux.runs.run_folder import RunFolder
from crux.runs.tracking import read_parent_tags, track_run

if TYPE_CHECKING:
    from crux.runs.mlflow import Tracker


@dataclass
class TrackedRun:
    """One run of a job, with its run folder and the writer of its MLflow run."""

    name: str
    """Name of the folder within the job's folder; empty if the run is the job itself."""
    config: Job
    folder: RunFolder
    failed: bool = False
    tracker: "Tracker | None" = None
    end: ExitStack = field(default_factory=ExitStack)
    """Ends the MLflow run when it is closed."""

    @property
    def prefix(self) -> str:
        """The prefix of this run's values in a row with the values of all runs of the job."""
        return f"{self.name}/" if self.name else ""

    def add_row(self, step: int, row: Mapping[str, float]) -> None:
        """Add the values of this run to its history and to MLflow; the row may hold those of all runs of the job."""
        if values := {k.removeprefix(self.prefix): v for k, v in row.items() if k.startswith(self.prefix)}:
            self.folder.add_row(step, values)
            if self.tracker is not None:
                self.tracker.log_metrics(step, values)

    def write_results(self, metrics: Mapping[str, float]) -> None:
        """Write the final metrics to the run folder; log them and the folder's files to MLflow."""
        self.folder.write_metrics(metrics)
        if self.tracker is not None:
            self.tracker.log_metrics(0, metrics)  # always at step 0: MLflow draws bars for single values
            self.tracker.log_files(self.folder.path)

    def fail(self, error: Exception) -> None:
        """End this run as failed, while the job goes on with its other runs. Further calls do nothing."""
        if self.failed:
            return
        self.failed = True
        self.folder.fail(str(error), details="")
        print(f"crux: {self.name}: {error}", file=sys.stderr)
        if self.tracker is not None:
            self.tracker.set_tag("failure", str(error))
        self.end.__exit__(type(error), error, None)

    def finish(self) -> None:
        """Mark the run as DONE and end its MLflow run."""
        self.folder.finish()
        self.end.close()


def create_runs(job: RunFolder, configs: Mapping[str, Job], *, resumed: bool) -> list[TrackedRun]:
    """Return the runs of a job, with their folders created.

    Args:
        configs: configuration of each run by its name; an empty name means that the job itself is the run.
        resumed: True if the job continues an earlier start, so that what is in the folders is kept.
    """
    return [
        TrackedRun(name, config, job.open_subfolder(name, to_plain(config), resumed=resumed) if name else job)
        for name, config in configs.items()
    ]


def start_tracking(
    config: Job, job: RunFolder, runs: list[TrackedRun], ends: ExitStack, *, params: Mapping[str, object]
) -> None:
    """Start an MLflow run for each run of a job.

    If the job has several runs, they are children of an MLflow run for the job; in a sweep, of the sweep's MLflow run.

    Args:
        ends: a stack that ends the MLflow runs when it is closed.
    """
    if runs[0].name and not read_parent_tags(job.path):
        tracker = ends.enter_context(track_run(config, job, params=params))
        if tracker is not None:
            tracker.log_files(job.path)
    for run in runs:
        ends.push(run.end)
        run.tracker = run.end.enter_context(track_run(run.config, run.folder, params=params))
