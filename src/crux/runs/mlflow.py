"""Write one MLflow run: parameters, metrics, artifacts, tags and the state in which it ended."""

import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from crux.config.errors import UserError

State = Literal["FINISHED", "FAILED", "KILLED"]

LOCK_SECONDS = 20.0
"""Seconds to wait at the start of a run for another process to release the database."""


def default_uri(outputs: Path) -> str:
    """Return the tracking URI to use if none is given: sqlite in the outputs folder."""
    return f"sqlite:///{outputs.resolve()}/mlflow.db"


def prepare_store(uri: str, experiment: str, outputs: Path) -> str:
    """Create the database and the experiment if they do not exist; return the id of the experiment.

    One process at a time does this, because MLflow's migration is corrupted if several processes start it at once. In WAL mode several
    jobs can write at the same time (docs/reference/libraries.md §3).

    Raises:
        MlflowException, sqlite3.Error, OSError: if the database cannot be created, read or written.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    outputs.mkdir(parents=True, exist_ok=True)
    with FileLock(outputs / ".mlflow.lock"):
        if uri.startswith("sqlite:///"):
            _take_write_lock(Path(uri.removeprefix("sqlite:///")))
        client = MlflowClient(uri)
        if (existing := client.get_experiment_by_name(experiment)) is not None:
            return existing.experiment_id
        place = (outputs.resolve() / "artifacts").as_uri() if uri.startswith("sqlite") else None
        return client.create_experiment(experiment, artifact_location=place)


def _take_write_lock(path: Path) -> None:
    """Switch the database to WAL mode and check that it can be locked for writing. MLflow's client would retry for minutes."""
    with closing(sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


@contextmanager
def explain_errors(uri: str) -> Iterator[None]:
    """Turn exceptions of MLflow and its database into a UserError of one line, which says what to do."""
    try:
        yield
    except (MlflowException, sqlite3.Error) as error:
        reason = " ".join(str(error).split()).removeprefix("(sqlite3.OperationalError) ")[:200]
        raise UserError(f"MLflow cannot use {uri} ({reason}); repair or move it, or use tracking=none") from error


class Tracker:
    """The writer of one MLflow run. Every method raises UserError if the database or the server fails."""

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.client, self.run_id = uri, MlflowClient(uri), run_id

    @classmethod
    def start(
        cls,
        uri: str,
        *,
        experiment: str,
        outputs: Path,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
    ) -> "Tracker":
        """Create a run with its parameters and tags."""
        with explain_errors(uri):
            experiment_id = prepare_store(uri, experiment, outputs)
            run = MlflowClient(uri).create_run(experiment_id, run_name=name, tags=dict(tags))
            tracker = cls(uri, run.info.run_id)
            tracker.client.log_batch(tracker.run_id, params=[Param(k, str(v)) for k, v in params.items()])
        return tracker

    @classmethod
    def resume(cls, uri: str, run_id: str, *, tags: Mapping[str, str]) -> "Tracker":
        """Set an earlier run to RUNNING again, and set its tags."""
        with explain_errors(uri):
            tracker = cls(uri, run_id)
            tracker.client.update_run(run_id, status="RUNNING")
            for key, value in tags.items():
                tracker.client.set_tag(run_id, key, value)
        return tracker

    @classmethod
    def find(cls, uri: str, run_id: str) -> "Tracker | None":
        """Set an earlier run to RUNNING again; return None if the database has no such run, or it was deleted."""
        with explain_errors(uri):
            try:
                earlier = MlflowClient(uri).get_run(run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None
        return cls.resume(uri, run_id, tags={}) if earlier.info.lifecycle_stage == "active" else None

    def find_running_children(self) -> dict[str, str]:
        """Return the children of this run whose state is RUNNING: the name of the job by the id of its run."""
        found: dict[str, str] = {}
        with explain_errors(self.uri):
            experiment = self.client.get_run(self.run_id).info.experiment_id
            filters, token = f"tags.`mlflow.parentRunId` = '{self.run_id}' and attributes.status = 'RUNNING'", None
            while True:
                page = self.client.search_runs([experiment], filters, page_token=token)
                found |= {run.info.run_id: run.data.tags.get("job", "") for run in page}
                if not (token := page.token):
                    return found

    def log_metrics(self, step: int, row: Mapping[str, float]) -> None:
        """Log the values of a row at a step."""
        now = int(time.time() * 1000)
        with explain_errors(self.uri):
            self.client.log_batch(self.run_id, metrics=[Metric(k, v, now, step) for k, v in row.items()])

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag of the run."""
        with explain_errors(self.uri):
            self.client.set_tag(self.run_id, key, value)

    def log_files(self, run_folder: Path) -> None:
        """Log the files of a run folder as artifacts: those at the top, the figures and the SAE."""
        with explain_errors(self.uri):
            for path in sorted(run_folder.iterdir()):
                if path.is_file() and path.suffix in (".yaml", ".json", ".jsonl", ".html"):
                    self.client.log_artifact(self.run_id, str(path))
            for name in (n for n in ("figures", "sae") if (run_folder / n).is_dir()):
                self.client.log_artifacts(self.run_id, str(run_folder / name), name)

    def end(self, state: State) -> None:
        """End the run in this state."""
        with explain_errors(self.uri):
            self.client.set_terminated(self.run_id, status=state)
