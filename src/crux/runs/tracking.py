"""A job's place in MLflow, from its start to its true end."""

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
from crux.runs.run_folder import RunFolder, find_unfinished, named_unfinished, same_run

if TYPE_CHECKING:
    from crux.runs.mlflow import Tracker


PARENT = "mlflow.parentRunId"
"""MLflow's tag that makes a run another's child."""


def family(folder: Path) -> dict[str, str]:
    """Tags of a run whose folder lies in that of a sweep, or of a job of many runs: its parent, and the name that it has there.

    In a sweep the runs of such a job are the sweep's children. Empty where there is no parent.
    """
    for job in (folder, folder.parent):
        if (known := job.parent / "mlflow_run_id").exists():
            return {PARENT: known.read_text("utf-8").strip(), "job": job.name}
    return {}


def find_earlier_run(config: Job, folder: Path | None) -> RunFolder | None:
    """Return the unfinished run to continue, if one is asked for; in a sweep, what its folder holds of this very job, finished or not.

    Raises:
        UserError: if the one that is asked for is not there, or is another job's.
    """
    plain = to_plain(config)
    if config.resume_from is not None:
        return named_unfinished(Path(config.resume_from), plain)
    if folder is not None:
        return same_run(folder, plain)
    return find_unfinished(Path(config.output_dir), plain) if config.resume else None


def git_sha() -> str | None:
    """The commit of the checkout that this code runs from, with `-dirty` where it was changed; None outside git."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def tracking_uri(config: Job) -> str | None:
    """The server or database that was asked for; None: the default one in the outputs folder."""
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")


def how_to_compare(config: Job) -> str:
    """What to open, or the command to type, to see the run in MLflow."""
    from crux.runs.mlflow import database

    uri = tracking_uri(config) or database(Path(config.output_dir))
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


@contextmanager
def tracked(config: Job, folder: RunFolder, *, params: Mapping[str, object]) -> "Iterator[Tracker | None]":
    """The job's MLflow run, ended as FINISHED, FAILED or KILLED; None with tracking=none.

    A run folder that already has one goes on with it, so that a resumed run is one run. `params` are those that the configuration
    does not hold.
    """
    if not config.tracking.mlflow:
        yield None
        return
    from crux.runs.mlflow import Tracker, database

    outputs = Path(config.output_dir)
    uri = tracking_uri(config) or database(outputs)
    known, above = folder.path / "mlflow_run_id", family(folder.path)
    if known.exists():
        tracker = Tracker.go_on(uri, known.read_text("utf-8").strip(), tags=above)
    else:
        try:
            tracker = Tracker.start(
                uri,
                experiment=config.tracking.experiment,
                outputs=outputs,
                name=config.run_name(),
                params={**config.mlflow_params(), **params},
                tags=tags_of(config) | above,
            )
        except UserError:
            folder.discard_unstarted()
            raise
        write_text(known, tracker.run_id + "\n")
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


def tags_of(config: Job) -> dict[str, str]:
    """Return the tags by which people filter runs."""
    found = {**config.mlflow_tags(), "sweep": config.sweep_name, "git_sha": git_sha()}
    return {key: value for key, value in found.items() if value is not None}
