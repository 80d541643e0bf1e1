"""The runs of a job: usually the job itself; one run per SAE, in folders within the job's, if it trains many SAEs at once."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crux.config.schema import Job, to_plain
from crux.runs.record import TextDataset, read_run_id
from crux.runs.run_folder import RunFolder
from crux.runs.tracking import find_parent, track_run

if TYPE_CHECKING:
    from crux.runs.delivery import Delivery


@dataclass
class TrackedRun:
    """One run of a job, with its run folder and what sends it to MLflow."""

    name: str
    """Name of the folder within the job's folder; empty if the run is the job itself."""
    config: Job
    folder: RunFolder
    earlier_id: str | None = None
    """Id of the MLflow run of an earlier start in the same folder."""
    failed: bool = False
    delivery: "Delivery | None" = None
    end: ExitStack = field(default_factory=ExitStack)
    """Ends the MLflow run when it is closed."""

    @property
    def prefix(self) -> str:
        """The prefix of this run's values in a row with the values of all runs of the job."""
        return f"{self.name}/" if self.name else ""

    def add_row(self, step: int, row: Mapping[str, float]) -> None:
        """Add the values of this run to its history and to MLflow; the row may hold those of all runs of the job."""
        if values := {k.removeprefix(self.prefix): v for k, v in row.items() if k.startswith(self.prefix)}:
            if self.delivery is not None:
                self.delivery.note_time()
            self.folder.add_row(step, values)

    def write_results(self, metrics: Mapping[str, float], *, description: str | None) -> None:
        """Write the final metrics to the run folder, and keep the description that MLflow shows."""
        self.folder.write_metrics(metrics)
        if self.delivery is not None:
            self.delivery.describe(description)

    def fail(self, error: Exception) -> None:
        """End this run as failed, while the job goes on with its other runs. Further calls do nothing."""
        if self.failed:
            return
        self.failed = True
        self.folder.fail(str(error), details="")
        print(f"crux: {self.name}: {error}", file=sys.stderr)
        if self.delivery is not None:
            self.delivery.record.failure = str(error)
        self.end.__exit__(type(error), error, None)

    def finish(self) -> None:
        """Mark the run as DONE and end its MLflow run."""
        self.folder.finish()
        self.end.close()


def create_runs(
    job: RunFolder, configs: Mapping[str, Job], *, resumed: bool, earlier_id: str | None
) -> list[TrackedRun]:
    """Return the runs of a job, with their folders created.

    Args:
        configs: configuration of each run by its name; an empty name means that the job itself is the run.
        resumed: True if the job continues an earlier start, so that what is in the folders is kept.
        earlier_id: id of the MLflow run of an earlier start in the job's folder.
    """
    ids = {name: read_run_id(job.path / name) if name else earlier_id for name in configs}
    return [
        TrackedRun(
            name,
            config,
            job.open_subfolder(name, to_plain(config), resumed=resumed) if name else job,
            earlier_id=ids[name],
        )
        for name, config in configs.items()
    ]


def start_tracking(
    config: Job,
    job: RunFolder,
    runs: list[TrackedRun],
    ends: ExitStack,
    *,
    params: Mapping[str, object],
    dataset: TextDataset | None,
    earlier_id: str | None,
) -> None:
    """Start an MLflow run for each run of a job.

    If the job has several runs, they are children of an MLflow run for the job; in a sweep, of the sweep's MLflow run.

    Args:
        ends: a stack that ends the MLflow runs when it is closed.
        params: parameters for MLflow, in addition to those of the configuration.
        dataset: the text of the job.
        earlier_id: id of the MLflow run of an earlier start in the job's folder.
    """
    if runs[0].name and find_parent(job.path)[0] is None:
        ends.enter_context(track_run(config, job, params=params, dataset=dataset, earlier_id=earlier_id))
    for run in runs:
        ends.push(run.end)
        run.delivery = run.end.enter_context(
            track_run(run.config, run.folder, params=params, dataset=dataset, earlier_id=run.earlier_id)
        )


def list_deliveries(runs: Sequence[TrackedRun]) -> "list[Delivery]":
    """Return what sends these runs to MLflow; nothing with tracking=none."""
    return [run.delivery for run in runs if run.delivery is not None]
