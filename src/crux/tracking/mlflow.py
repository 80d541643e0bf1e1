"""One run in MLflow: parameters, metrics, artifacts, tags and its true end state."""

import logging
import os
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

State = Literal["FINISHED", "FAILED", "KILLED"]


def database(outputs: Path) -> str:
    """The tracking URI where none is given: sqlite in the outputs folder."""
    return f"sqlite:///{outputs.resolve()}/mlflow.db"


def prepare(uri: str, experiment: str, outputs: Path) -> str:
    """Creates database and experiment where they are missing, one process at a time; returns the experiment's id.

    Eight cold starts at once corrupt MLflow's migration; WAL lets jobs write beside each other (reference B2, B3).
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    with FileLock(outputs / ".mlflow.lock"):
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        if uri.startswith("sqlite:///"):
            connection = sqlite3.connect(uri.removeprefix("sqlite:///"))
            connection.execute("PRAGMA journal_mode=WAL")
            connection.close()
        if found is not None:
            return found.experiment_id
        place = (outputs.resolve() / "artifacts").as_uri() if uri.startswith("sqlite") else None
        return client.create_experiment(experiment, artifact_location=place)


class Tracker:
    """Writes one MLflow run."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client, self.run_id = client, run_id

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
        """A new run, its parameters and tags set.

        Raises:
            ValueError: where the database cannot be used.
        """
        try:
            experiment_id = prepare(uri, experiment, outputs)
            client = MlflowClient(uri)
            run_id = client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id
            client.log_batch(run_id, params=[Param(k, str(v)) for k, v in params.items()])
        except (MlflowException, sqlite3.Error) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"MLflow cannot use {uri} ({reason}); mend or move it, or say tracking=none") from error
        return cls(client, run_id)

    @classmethod
    def go_on(cls, uri: str, run_id: str) -> "Tracker":
        """An earlier run, running again."""
        client = MlflowClient(uri)
        client.update_run(run_id, status="RUNNING")
        return cls(client, run_id)

    def metrics(self, step: int, row: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, metrics=[Metric(k, v, now, step) for k, v in row.items()])

    def files(self, run_folder: Path) -> None:
        """What the run left, as artifacts: the files at the top, the figures and the SAE."""
        for path in sorted(run_folder.iterdir()):
            if path.is_file() and path.suffix in (".yaml", ".json", ".jsonl", ".html"):
                self.client.log_artifact(self.run_id, str(path))
        for name in ("figures", "sae"):
            self.client.log_artifacts(self.run_id, str(run_folder / name), name)

    def end(self, state: State) -> None:
        self.client.set_terminated(self.run_id, status=state)
