"""The calls to MLflow that do not belong to one run: the store and the experiment, settings, and reasons of failures in one line."""

import logging
import os
import re
from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Experiment, Run
from mlflow.exceptions import MlflowException

from crux.runs.database import prepare_database
from crux.runs.record import database_path
from crux.runs.view import view_tag

with suppress(ImportError):
    # MLflow imports it at its first call, which is in another thread; libraries look whether it is imported, and would find half of it
    import IPython  # noqa: F401

HTTP_TIMEOUT = 8
"""Seconds that a server has to answer."""

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Tags of an experiment: MLflow's pages show what belongs to the training of models, not to agents."""


class TrackingError(Exception):
    """A reason why MLflow cannot be used, worded for the user."""


def default_uri(outputs: Path) -> str:
    """Return the tracking URI to use if none is given: sqlite in the outputs folder."""
    return f"sqlite:///{outputs.resolve()}/mlflow.db"


class _Databases:
    """The files of sqlite databases that this process has opened."""

    opened: dict[str, tuple[str, int]] = {}  # noqa: RUF012 - one for the process
    """By URI: the URI under which MLflow has opened the file, and the file's number."""


def was_replaced(uri: str) -> bool:
    """Return True if a sqlite database was deleted or replaced since it was opened: MLflow would go on to write into the deleted file."""
    path = database_path(uri)
    if path is None or uri not in _Databases.opened:
        return False
    return not path.exists() or path.stat().st_ino != _Databases.opened[uri][1]


def connect(uri: str) -> MlflowClient:
    """Return a client of the server or database."""
    if (path := database_path(uri)) is None:
        return MlflowClient(uri)
    used = _Databases.opened.get(uri, (uri, 0))[0]
    if was_replaced(uri):  # MLflow keeps its connections by URI, so that the new file needs another one
        before, _, after = used.rpartition("/")
        used = f"{before}/./{after}"
    _Databases.opened[uri] = (used, path.stat().st_ino)
    return MlflowClient(used)


def quieten_mlflow() -> None:
    """Make MLflow's client fail soon and without a word: crux tries again and reports failures itself."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(HTTP_TIMEOUT))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def prepare_store(uri: str, experiment: str, outputs: Path) -> str:
    """Create the database and the experiment if they do not exist; return the id of the experiment.

    Raises:
        TrackingError: if the experiment was deleted.
        Exception: whatever MLflow, its database or its server raises.
    """
    quieten_mlflow()
    if (path := database_path(uri)) is not None:
        prepare_database(path)
    client, tags = connect(uri), EXPERIMENT_TAGS | view_tag()
    existing = client.get_experiment_by_name(experiment)
    if existing is None:
        place = (outputs.resolve() / "artifacts").as_uri() if path is not None else None
        try:
            return client.create_experiment(experiment, artifact_location=place, tags=dict(tags))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            existing = client.get_experiment_by_name(experiment)  # created by another process just now
            assert existing is not None
    check_not_deleted(existing)
    for key, value in tags.items():
        if existing.tags.get(key) != value and (key not in EXPERIMENT_TAGS or key not in existing.tags):
            client.set_experiment_tag(existing.experiment_id, key, value)
    return existing.experiment_id


def check_not_deleted(experiment: Experiment) -> None:
    """Raise TrackingError if an experiment was deleted."""
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"its experiment {experiment.name} was deleted: restore it (mlflow experiments restore --experiment-id "
            f"{experiment.experiment_id}), or use tracking.experiment=<another>"
        )


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """Return a run, which may be deleted; None if MLflow does not have it."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run


def explain_failure(error: BaseException) -> str:
    """Return the reason of a failure of MLflow, its database or its server, in one short line."""
    text = " ".join(str(error).split())
    if isinstance(error, TrackingError):
        return text
    if isinstance(error, ImportError):
        return f"its driver is missing: {text}"
    if "timed out" in text or isinstance(error, TimeoutError):
        return "it does not answer"
    if match := re.search(r"failed with error code (\d+)|too many (\d+) error responses", text):
        return f"it answers with status {match[1] or match[2]}"
    if match := re.search(r"\[Errno -?\d+\] ([^'\")>\]]+)", text):
        return match[1]
    text = re.sub(r"^\([\w.]+\) ", "", text.partition(" [SQL:")[0].partition(" (Background on")[0])
    return text[:200] or type(error).__name__
