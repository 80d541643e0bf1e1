"""Checks that apply to every job, without torch: writable folders, a tracking URI without mistakes, a run to resume."""

import os
import re
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlparse

from crux.config.errors import UserError
from crux.config.schema import Job
from crux.runs.earlier_run import take_earlier_run
from crux.runs.record import database_path, hide_password

TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
"""The URI schemes of the servers and databases in which MLflow can keep runs."""

SERVER, DATABASE = "http://<host>:<port>", "sqlite:////<folder>/<name>.db"


def check_run(config: Job) -> None:
    """Check the outputs folder, the tracking URI, and the run to resume.

    Raises:
        UserError: for the first problem, in one line.
    """
    check_writable("output_dir", config.output_dir)
    if config.tracking.mlflow:
        check_tracking(config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"))
    if config.resume and config.resume_from is not None:
        raise UserError("resume and resume_from both given: give one of them")
    with ExitStack() as ends:
        take_earlier_run(config, None, ends)


def check_writable(key: str, place: str) -> None:
    """Check that a folder is writable, or can be created; `key` is the option that names the folder."""
    folder = Path(place)
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{key}={place}: {folder} is a file; a folder is needed")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{key}={place}: {folder} cannot be written to")


def check_tracking(uri: str | None) -> None:
    """Check that a tracking URI can be one of a server or database. Whether it answers is not checked: the run goes on without it.

    Raises:
        UserError: if the URI is a mistake in itself.
    """
    if uri is None or uri == "databricks":
        return
    advice = f"allowed are {', '.join(TRACKING_SCHEMES)}, each with ://…; or say tracking=none"
    shown = hide_password(uri)
    try:
        address = urlparse(uri)
        port = address.port
    except ValueError as error:
        raise UserError(f"tracking.uri={shown}: {error}; write {SERVER}") from None
    scheme = address.scheme.partition("+")[0]
    if scheme not in TRACKING_SCHEMES or f"{address.scheme}://" not in uri:
        raise UserError(f"tracking.uri={shown}: {advice}")
    if scheme in ("http", "https") and (not address.hostname or port == 0 or re.search(r"\s", uri)):
        raise UserError(f"tracking.uri={shown}: no address of a server; write {SERVER}")
    if scheme == "sqlite":
        path = database_path(uri)
        if path is None or not path.name or path.name == ":memory:":
            raise UserError(f"tracking.uri={shown}: names no file; write {DATABASE}")
        if path.is_dir():
            raise UserError(f"tracking.uri={shown}: {path} is a folder; write {DATABASE}")
