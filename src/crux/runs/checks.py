"""Checks that apply to every job, without torch: writable folders, a tracking server that answers, a run to resume."""

import os
import socket
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlparse

from crux.config.errors import UserError
from crux.config.schema import Job
from crux.runs.earlier_run import take_earlier_run

TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
"""The URI schemes of the servers and databases in which MLflow can keep runs."""


def check_run(config: Job) -> None:
    """Check the outputs folder, the tracking server, and the run to resume.

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
    """Check the scheme of a tracking URI, and that a server answers within a second; MLflow's own client would retry for minutes."""
    if uri is None:
        return
    if urlparse(uri).scheme.partition("+")[0] not in TRACKING_SCHEMES:
        raise UserError(
            f"tracking.uri={uri}: allowed are {', '.join(TRACKING_SCHEMES)}, each with ://…; or say tracking=none"
        )
    if not uri.startswith(("http://", "https://")):
        return
    address = urlparse(uri)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=1.0).close()
    except OSError as error:
        raise UserError(
            f"the tracking server {uri} does not answer ({error}); start it, or say tracking=none"
        ) from None
