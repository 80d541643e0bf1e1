"""Tracking of a job in MLflow, from its start to its end."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from crux.config.errors import UserError
from crux.config.files import write_text
from crux.config.schema import Job, to_plain
from crux.runs.run_folder import RunFolder, find_same_run, find_unfinished, open_unfinished

if TYPE_CHECKING:
    from crux.runs.mlflow import Tracker


PARENT = "mlflow.parentRunId"
"""MLflow's tag that makes a run another's child."""


def parent_tags(folder: Path) -> dict[str, str]:
    """Return tags that name the parent of a run: the sweep, or the job with several runs, in whose folder the run's folder is.

    In a sweep, the runs of a job with several runs are children of the sweep. Without a parent there are no tags.
    """
    for job in (folder, folder.parent):
        if (known := job.parent / "mlflow_run_id").exists():
            return {PARENT: known.read_text("utf-8").strip(), "job": job.name}
    return {}


def find_earlier_run(config: Job, folder: Path | None) -> RunFolder | None:
    """Return the run to continue, if the user has asked for one; in a sweep, the run of this job in its folder, finished or not.

    Raises:
        UserError: if the run does not exist or has another configuration.
    """
    plain = to_plain(config)
    if config.resume_from is not None:
        return open_unfinished(Path(config.resume_from), plain)
    if folder is not None:
        return find_same_run(folder, plain)
    return find_unfinished(Path(config.output_dir), plain) if config.resume else None


def git_sha() -> str | None:
    """Return the commit of the checkout of this code, with `-dirty` if files were changed; None outside of git."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def tracking_uri(config: Job) -> str | None:
    """Return the server or database that the user has asked for; None: the default one in the outputs folder."""
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")


def comparison_command(config: Job) -> str:
    """Return the address to open, or the command to type, to compare the run with others in MLflow."""
    from crux.runs.mlflow import default_uri

    uri = tracking_uri(config) or default_uri(Path(config.output_dir))
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


@contextmanager
def track_run(config: Job, folder: RunFolder, *, params: Mapping[str, object]) -> "Iterator[Tracker | None]":
    """Yield the MLflow run of a job, which ends as FINISHED, FAILED or KILLED; None with tracking=none.

    If the run folder already has an MLflow run, that one is continued, so that a resumed run is one run.

    Args:
        params: parameters in addition to those of the configuration.
    """
    if not config.tracking.mlflow:
        yield None
        return
    from crux.runs.mlflow import Tracker, default_uri

    outputs = Path(config.output_dir)
    uri = tracking_uri(config) or default_uri(outputs)
    id_file, parent = folder.path / "mlflow_run_id", parent_tags(folder.path)
    if id_file.exists():
        tracker = Tracker.resume(uri, id_file.read_text("utf-8").strip(), tags=parent)
    else:
        try:
            tracker = Tracker.start(
                uri,
                experiment=config.tracking.experiment,
                outputs=outputs,
                name=config.run_name(),
                params={**config.mlflow_params(), **params},
                tags=run_tags(config) | parent,
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
        except UserError as error:  # what stopped the run matters more
            print(f"crux: the run's end could not be reported: {error}", file=sys.stderr)
        raise
    try:
        tracker.end("FINISHED")
    except UserError as error:
        if not folder.done:
            raise
        print(f"crux: the run is done, but its end could not be reported: {error}", file=sys.stderr)


def run_tags(config: Job) -> dict[str, str]:
    """Return the tags by which people filter runs in MLflow."""
    tags = {**config.mlflow_tags(), "sweep": config.sweep_name, "git_sha": git_sha()}
    return {key: value for key, value in tags.items() if value is not None}
