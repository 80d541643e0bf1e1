"""Track a job in MLflow, from its start to its end."""

import getpass
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from crux.config.schema import Job
from crux.runs.command_line import command_line
from crux.runs.outbox import OUTBOX_OF_PROCESS
from crux.runs.record import RUN_ID, RunRecord, TextDataset, entry_path, find_outputs, hide_password, is_unsent
from crux.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from crux.runs.delivery import Delivery

DEFAULT_ADDRESS = "http://127.0.0.1:5000"
"""The address at which `mlflow ui` shows a database."""


def find_parent(folder: Path) -> tuple[str | None, dict[str, str]]:
    """Return the folder of a run's parent and the tag with the job's name; None and no tag if the run has no parent.

    The parent is a sweep or a job with several runs. Its folder is above the run's folder: directly, or two levels above for a job with
    several runs in a sweep, whose runs are children of the sweep.

    Args:
        folder: the run folder.
    """
    for child in (folder, folder.parent):
        parent = child.parent
        if (parent / RUN_ID).exists() or _is_in_an_outbox(parent):
            return str(parent.resolve()), {"job": child.name}
    return None, {}


def _is_in_an_outbox(folder: Path) -> bool:
    """Return True if MLflow does not show a run with this folder completely."""
    return any(entry_path(above, folder).exists() for above in folder.resolve().parents[:3])


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


def explain_comparison(config: Job, delivery: "Delivery | None") -> dict[str, str]:
    """Return how to compare runs in MLflow: the command that shows the database, and the address of the prepared view.

    Args:
        delivery: what sends the run; None with tracking=none, for which there is nothing to compare.
    """
    if delivery is None:
        return {}
    from crux.runs.view import view_address

    uri = choose_uri(config)
    served = uri.startswith("http")
    server = hide_password(uri) if served else DEFAULT_ADDRESS
    address = view_address(server, delivery.experiment_id) if delivery.experiment_id is not None else server
    return (
        {"compare": address}
        if served
        else {"compare": f"mlflow ui --backend-store-uri {hide_password(uri)}", "then open": address}
    )


def begin_delivery(
    config: Job,
    folder: RunFolder,
    *,
    params: Mapping[str, object],
    dataset: TextDataset | None,
    earlier_id: str | None,
) -> "Delivery":
    """Begin to send a run to MLflow in the background.

    Args:
        params: MLflow parameters in addition to those that the configuration gives.
        dataset: the text of the job.
        earlier_id: id of the MLflow run of an earlier start, which is continued if it still exists.
    """
    from crux.runs.delivery import Delivery

    uri = choose_uri(config)
    parent, parent_tags = find_parent(folder.path)
    tags = list_tags(config) | parent_tags | {"run_folder": str(folder.path.resolve())}
    record = RunRecord(
        folder=str(folder.path.resolve()),
        outputs=str(find_outputs(config, folder.path)),
        uri=hide_password(uri),
        experiment=config.tracking.experiment,
        name=config.run_name(),
        params={key: str(value) for key, value in {**config.mlflow_params(), **params}.items()},
        tags=tags,
        started=int(time.time() * 1000),
        parent=parent,
        dataset=list(dataset) if dataset is not None else None,
        earlier_id=earlier_id,
    )
    delivery = Delivery(record, uri=uri)
    OUTBOX_OF_PROCESS.add(delivery)
    return delivery


@contextmanager
def track_run(
    config: Job,
    folder: RunFolder,
    *,
    params: Mapping[str, object],
    dataset: TextDataset | None = None,
    earlier_id: str | None = None,
) -> "Iterator[Delivery | None]":
    """Track a job in MLflow during the block: yield what sends its run, or None with tracking=none.

    The MLflow run ends as FINISHED, as KILLED after Ctrl-C or SIGTERM, and as FAILED after any other exception. If its
    folder is done, it has finished.
    """
    if not config.tracking.mlflow:
        yield None
        return
    delivery = begin_delivery(config, folder, params=params, dataset=dataset, earlier_id=earlier_id)
    try:
        yield delivery
    except BaseException as stop:
        if folder.done:  # a stop between the end of the run and this
            delivery.end("FINISHED")
        else:
            delivery.end("KILLED" if isinstance(stop, KeyboardInterrupt | SystemExit) else "FAILED")
        raise
    delivery.end("FINISHED")


@contextmanager
def flush_at_end(config: Job, deliveries: "Callable[[], Sequence[Delivery]]") -> Iterator[None]:
    """Wait a little at the end of the block until MLflow has what there is to send; after an exception, say what it does not have.

    Args:
        deliveries: returns what sends the runs of the job.
    """
    try:
        yield
    except BaseException as stop:
        if config.tracking.mlflow:
            OUTBOX_OF_PROCESS.flush(stopped=isinstance(stop, KeyboardInterrupt | SystemExit))
            OUTBOX_OF_PROCESS.print_unsent(deliveries())
        raise
    if config.tracking.mlflow:
        OUTBOX_OF_PROCESS.flush(stopped=False)


def send_left(config: Job, folder: RunFolder) -> None:
    """Send what an earlier process could not send of a run that is done, and wait a little for it."""
    if not config.tracking.mlflow or not is_unsent(config, folder):
        return
    OUTBOX_OF_PROCESS.send_left(find_outputs(config, folder.path), choose_uri(config))
    OUTBOX_OF_PROCESS.flush(stopped=False)


def find_user() -> str | None:
    """Return the name of the user who runs this process; None if the machine does not know it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def list_tags(config: Job) -> dict[str, str]:
    """Return the tags by which people filter runs in MLflow, and those of MLflow that say where a run comes from."""
    commit = find_git_commit()
    tags = {**config.mlflow_tags(), "sweep": config.sweep_name, "git_sha": commit}
    tags |= {
        "mlflow.user": find_user(),
        "mlflow.source.name": command_line(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit.removesuffix("-dirty") if commit is not None else None,
    }
    return {key: value for key, value in tags.items() if value is not None}
