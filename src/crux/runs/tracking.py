"""Track a job in MLflow, from its start to its end."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from crux.config.errors import UserError
from crux.config.files import write_text
from crux.config.schema import Job
from crux.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from crux.runs.mlflow import Tracker


PARENT_TAG = "mlflow.parentRunId"
"""The name of MLflow's tag for the id of a run's parent."""


def read_parent_tags(folder: Path) -> dict[str, str]:
    """Return the MLflow tags that name the parent of a run; none if the run has no parent.

    The parent is a sweep or a job with several runs. Its folder, which holds the id of its MLflow run, is above the run's folder: directly,
    or two levels above for a job with several runs in a sweep, whose runs are children of the sweep.

    Args:
        folder: the run folder.
    """
    for child in (folder, folder.parent):
        id_file = child.parent / "mlflow_run_id"
        if id_file.exists():
            return {PARENT_TAG: id_file.read_text("utf-8").strip(), "job": child.name}
    return {}


def find_git_commit() -> str | None:
    """Return the commit of the checkout of this code, with `-dirty` if files were changed; None outside of git."""
    here = Path(__file__).parent
    # the empty pattern matches no tag, so that the answer is always the commit's hash
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def choose_uri(config: Job) -> str:
    """Return the URI of the server or database that the user has asked for; without one, of the database in the outputs folder."""
    from crux.runs.mlflow import default_uri

    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(Path(config.output_dir))


def explain_comparison(config: Job) -> str:
    """Return what opens MLflow's table of runs: the address of the server, or the command that starts one for the database."""
    uri = choose_uri(config)
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


@contextmanager
def track_run(config: Job, folder: RunFolder, *, params: Mapping[str, object]) -> "Iterator[Tracker | None]":
    """Track a job in MLflow during the block: yield the writer of its MLflow run, or None with tracking=none.

    The MLflow run ends as FINISHED, as KILLED after Ctrl-C or SIGTERM, and as FAILED after any other exception. If the run folder already
    has an MLflow run, that one is continued, so that a resumed job is one MLflow run.

    Args:
        params: MLflow parameters in addition to those that the configuration gives.
    """
    if not config.tracking.mlflow:
        yield None
        return
    from crux.runs.mlflow import Tracker

    uri = choose_uri(config)
    id_file, parent_tags = folder.path / "mlflow_run_id", read_parent_tags(folder.path)
    if id_file.exists():
        tracker = Tracker.resume(uri, id_file.read_text("utf-8").strip(), tags=parent_tags)
    else:
        try:
            tracker = Tracker.start(
                uri,
                experiment=config.tracking.experiment,
                outputs=Path(config.output_dir),
                name=config.run_name(),
                params={**config.mlflow_params(), **params},
                tags=list_tags(config) | parent_tags,
            )
        except UserError:
            folder.remove_if_unstarted()
            raise
        write_text(id_file, tracker.run_id + "\n")
    try:
        yield tracker
    except BaseException as stop:
        try:
            tracker.end("KILLED" if isinstance(stop, KeyboardInterrupt | SystemExit) else "FAILED")
        except UserError as error:  # raised instead, it would hide what stopped the run
            print(f"crux: the run's end could not be reported: {error}", file=sys.stderr)
        raise
    try:
        tracker.end("FINISHED")
    except UserError as error:
        if not folder.done:
            raise
        print(f"crux: the run is done, but its end could not be reported: {error}", file=sys.stderr)


def list_tags(config: Job) -> dict[str, str]:
    """Return the tags by which people filter runs in MLflow."""
    tags = {**config.mlflow_tags(), "sweep": config.sweep_name, "git_sha": find_git_commit()}
    return {key: value for key, value in tags.items() if value is not None}
