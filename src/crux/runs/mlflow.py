"""One run in MLflow: parameters, metrics, artifacts, tags and its true end state."""

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
"""How long another process may hold the database at a run's start."""


def database(outputs: Path) -> str:
    """The tracking URI where none is given: sqlite in the outputs folder."""
    return f"sqlite:///{outputs.resolve()}/mlflow.db"


def prepare(uri: str, experiment: str, outputs: Path) -> str:
    """Creates database and experiment where they are missing, one process at a time; returns the experiment's id.

    Eight cold starts at once corrupt MLflow's migration; WAL lets jobs write at the same time (docs/reference/libraries.md §3).

    Raises:
        MlflowException, sqlite3.Error, OSError: where the database cannot be made, read or written.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    outputs.mkdir(parents=True, exist_ok=True)
    with FileLock(outputs / ".mlflow.lock"):
        if uri.startswith("sqlite:///"):
            _take_write_lock(Path(uri.removeprefix("sqlite:///")))
        client = MlflowClient(uri)
        if (found := client.get_experiment_by_name(experiment)) is not None:
            return found.experiment_id
        place = (outputs.resolve() / "artifacts").as_uri() if uri.startswith("sqlite") else None
        return client.create_experiment(experiment, artifact_location=place)


def _take_write_lock(path: Path) -> None:
    """Sets WAL and takes the database's write lock for a moment: MLflow's own client would retry for minutes."""
    with closing(sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


@contextmanager
def told(uri: str) -> Iterator[None]:
    """Turns what MLflow and its database raise into one line.

    Raises:
        UserError: with the reason, and what to do.
    """
    try:
        yield
    except (MlflowException, sqlite3.Error) as error:
        reason = " ".join(str(error).split()).removeprefix("(sqlite3.OperationalError) ")[:200]
        raise UserError(f"MLflow cannot use {uri} ({reason}); mend or move it, or say tracking=none") from error


class Tracker:
    """Writes one MLflow run; every method raises UserError where the database or the server does not take it."""

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
        """A new run, its parameters and tags set."""
        with told(uri):
            experiment_id = prepare(uri, experiment, outputs)
            run = MlflowClient(uri).create_run(experiment_id, run_name=name, tags=dict(tags))
            tracker = cls(uri, run.info.run_id)
            tracker.client.log_batch(tracker.run_id, params=[Param(k, str(v)) for k, v in params.items()])
        return tracker

    @classmethod
    def go_on(cls, uri: str, run_id: str, *, tags: Mapping[str, str]) -> "Tracker":
        """An earlier run, running again, with these tags."""
        with told(uri):
            tracker = cls(uri, run_id)
            tracker.client.update_run(run_id, status="RUNNING")
            for key, value in tags.items():
                tracker.client.set_tag(run_id, key, value)
        return tracker

    @classmethod
    def find(cls, uri: str, run_id: str) -> "Tracker | None":
        """An earlier run, running again; None where the database has none of this id, or it was deleted."""
        with told(uri):
            try:
                found = MlflowClient(uri).get_run(run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None
        return cls.go_on(uri, run_id, tags={}) if found.info.lifecycle_stage == "active" else None

    def running_children(self) -> dict[str, str]:
        """Run id → name of the job, for each child run that says RUNNING."""
        found: dict[str, str] = {}
        with told(self.uri):
            experiment = self.client.get_run(self.run_id).info.experiment_id
            filters, token = f"tags.`mlflow.parentRunId` = '{self.run_id}' and attributes.status = 'RUNNING'", None
            while True:
                page = self.client.search_runs([experiment], filters, page_token=token)
                found |= {run.info.run_id: run.data.tags.get("job", "") for run in page}
                if not (token := page.token):
                    return found

    def metrics(self, step: int, row: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        with told(self.uri):
            self.client.log_batch(self.run_id, metrics=[Metric(k, v, now, step) for k, v in row.items()])

    def tag(self, key: str, value: str) -> None:
        with told(self.uri):
            self.client.set_tag(self.run_id, key, value)

    def files(self, run_folder: Path) -> None:
        """What the run left, as artifacts: the files at the top, the figures and the SAE."""
        with told(self.uri):
            for path in sorted(run_folder.iterdir()):
                if path.is_file() and path.suffix in (".yaml", ".json", ".jsonl", ".html"):
                    self.client.log_artifact(self.run_id, str(path))
            for name in (n for n in ("figures", "sae") if (run_folder / n).is_dir()):
                self.client.log_artifacts(self.run_id, str(run_folder / name), name)

    def end(self, state: State) -> None:
        with told(self.uri):
            self.client.set_terminated(self.run_id, status=state)
