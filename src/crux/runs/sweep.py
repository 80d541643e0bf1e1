"""A sweep's run in MLflow: the parent of its jobs' runs, from before the first of them to the sweep's true end."""

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from crux.config.errors import UserError
from crux.config.files import write_text
from crux.runs.tracking import git_sha

if TYPE_CHECKING:
    from crux.runs.mlflow import Tracker


LONGEST_DESCRIPTION = 5000
"""Characters; MLflow refuses tags of more, from some version on."""


class SweepRun:
    """The parent run. Its id is in `<sweep folder>/mlflow_run_id`, where jobs read it, in whatever process they run."""

    def __init__(self, tracker: "Tracker") -> None:
        self.tracker = tracker

    @staticmethod
    def uri_of(config: DictConfig) -> str | None:
        """The server or database that was asked for; None: the default one in the outputs folder."""
        return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")

    @classmethod
    def begin(cls, config: DictConfig, folder: Path) -> "SweepRun":
        """Creates database, experiment and run where they are missing; a sweep that goes on goes on with its run."""
        from crux.runs.mlflow import Tracker, database

        outputs = Path(config.output_dir)
        uri = cls.uri_of(config) or database(outputs)
        known = folder / "mlflow_run_id"
        if known.exists() and (found := Tracker.find(uri, known.read_text("utf-8").strip())) is not None:
            return cls(found)
        sha = git_sha()
        tracker = Tracker.start(
            uri,
            experiment=config.tracking.experiment,
            outputs=outputs,
            name=folder.name,
            params={},
            tags={"sweep": folder.name, "kind": "sweep"} | ({"git_sha": sha} if sha is not None else {}),
        )
        write_text(known, tracker.run_id + "\n")
        return cls(tracker)

    def end_children(self, jobs: Collection[str]) -> None:
        """Those of these jobs' runs that say RUNNING, but do not: their process was killed."""
        for run_id, job in self.tracker.running_children().items():
            if job in jobs:
                self.tracker.client.set_terminated(run_id, status="KILLED")

    def files(self, folder: Path) -> None:
        """The sweep's summary, as artifacts; its report also as the run's description."""
        from crux.runs.mlflow import told

        with told(self.tracker.uri):
            for path in sorted(folder.iterdir()):
                if path.suffix in (".md", ".csv"):
                    self.tracker.client.log_artifact(self.tracker.run_id, str(path))
            self.tracker.client.log_artifacts(self.tracker.run_id, str(folder / "figures"), "figures")
            report = (folder / "report.md").read_text("utf-8")
            if len(report) <= LONGEST_DESCRIPTION:
                self.tracker.client.set_tag(self.tracker.run_id, "mlflow.note.content", report)


@contextmanager
def sweep_run(config: DictConfig, folder: Path, *, jobs: Collection[str]) -> Iterator[SweepRun | None]:
    """The sweep's MLflow run, RUNNING inside and at the end FINISHED, FAILED or KILLED; None with tracking=none.

    Args:
        jobs: of this launch. What an earlier one left RUNNING of them was killed.
    """
    if not config.tracking.mlflow:
        yield None
        return
    run = SweepRun.begin(config, folder)
    run.end_children(jobs)
    try:
        yield run
    except BaseException as stop:
        killed = isinstance(stop, KeyboardInterrupt) or (isinstance(stop, SystemExit) and stop.code != 1)
        try:
            run.end_children(jobs)
            run.tracker.end("KILLED" if killed else "FAILED")
        except UserError as error:  # what stopped the sweep matters more
            print(f"crux: the sweep's end could not be told: {error}", file=sys.stderr)
        raise
    run.tracker.end("FINISHED")
