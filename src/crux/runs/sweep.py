"""The MLflow run of a sweep: the parent of its jobs' runs, which starts before them and ends with the sweep."""

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from crux.config.errors import UserError
from crux.config.files import write_text
from crux.runs.tracking import find_git_commit

if TYPE_CHECKING:
    from crux.runs.mlflow import Tracker


MAX_DESCRIPTION_LENGTH = 5000
"""Maximum number of characters of a run's description; newer versions of MLflow reject longer tags."""


class SweepRun:
    """The MLflow run of a sweep. Its id is in `<sweep folder>/mlflow_run_id`, where the processes of the jobs read it."""

    def __init__(self, tracker: "Tracker") -> None:
        self.tracker = tracker

    @staticmethod
    def requested_uri(config: DictConfig) -> str | None:
        """Return the server or database that the user has asked for; None: the default one in the outputs folder."""
        return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")

    @classmethod
    def start(cls, config: DictConfig, folder: Path) -> "SweepRun":
        """Create the database, the experiment and the run if they do not exist; a resumed sweep continues its run."""
        from crux.runs.mlflow import Tracker, default_uri

        outputs = Path(config.output_dir)
        uri = cls.requested_uri(config) or default_uri(outputs)
        id_file = folder / "mlflow_run_id"
        if id_file.exists() and (earlier := Tracker.find(uri, id_file.read_text("utf-8").strip())) is not None:
            return cls(earlier)
        commit = find_git_commit()
        tracker = Tracker.start(
            uri,
            experiment=config.tracking.experiment,
            outputs=outputs,
            name=folder.name,
            params={},
            tags={"sweep": folder.name, "kind": "sweep"} | ({"git_sha": commit} if commit is not None else {}),
        )
        write_text(id_file, tracker.run_id + "\n")
        return cls(tracker)

    def end_children(self, jobs: Collection[str]) -> None:
        """Set the runs of these jobs to KILLED if MLflow says RUNNING although their process has ended."""
        for run_id, job in self.tracker.find_running_children().items():
            if job in jobs:
                self.tracker.client.set_terminated(run_id, status="KILLED")

    def log_files(self, folder: Path) -> None:
        """Log the sweep's summary as artifacts, and its report also as the description of the run."""
        from crux.runs.mlflow import explain_errors

        with explain_errors(self.tracker.uri):
            for path in sorted(folder.iterdir()):
                if path.suffix in (".md", ".csv"):
                    self.tracker.client.log_artifact(self.tracker.run_id, str(path))
            self.tracker.client.log_artifacts(self.tracker.run_id, str(folder / "figures"), "figures")
            report = (folder / "report.md").read_text("utf-8")
            if len(report) <= MAX_DESCRIPTION_LENGTH:
                self.tracker.client.set_tag(self.tracker.run_id, "mlflow.note.content", report)


@contextmanager
def track_sweep(config: DictConfig, folder: Path, *, jobs: Collection[str]) -> Iterator[SweepRun | None]:
    """Yield the sweep's MLflow run, which ends as FINISHED, FAILED or KILLED; None with tracking=none.

    Args:
        jobs: names of the jobs. Those that MLflow still shows as RUNNING from an earlier launch are set to KILLED.
    """
    if not config.tracking.mlflow:
        yield None
        return
    run = SweepRun.start(config, folder)
    run.end_children(jobs)
    try:
        yield run
    except BaseException as stop:
        killed = isinstance(stop, KeyboardInterrupt) or (isinstance(stop, SystemExit) and stop.code != 1)
        try:
            run.end_children(jobs)
            run.tracker.end("KILLED" if killed else "FAILED")
        except UserError as error:  # raised instead, it would hide what stopped the sweep
            print(f"crux: the end of the sweep could not be reported: {error}", file=sys.stderr)
        raise
    run.tracker.end("FINISHED")
