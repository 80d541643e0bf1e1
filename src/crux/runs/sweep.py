"""The MLflow run of a sweep: the parent of its jobs' runs, which starts before them and ends with the sweep."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from crux.runs.outbox import OUTBOX_OF_PROCESS
from crux.runs.record import OUTBOX, RunRecord, count_unsent, hide_password, read_run_id
from crux.runs.tracking import find_git_commit


def requested_uri(config: DictConfig) -> str | None:
    """Return the server or database that the user has asked for; None: the default one in the outputs folder."""
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")


@contextmanager
def track_sweep(config: DictConfig, folder: Path) -> Iterator[None]:
    """Track a sweep in MLflow during the block, unless tracking=none. Its MLflow run ends as FINISHED, FAILED or KILLED.

    The id of the run is in `<sweep folder>/mlflow_run_id`, where the processes of the jobs read it; a resumed sweep continues its run. At
    the end the summary in the folder is logged, with its report as the description of the run, and what killed jobs have left is sent.
    """
    if not config.tracking.mlflow:
        yield
        return
    from crux.runs.delivery import Delivery
    from crux.runs.mlflow import default_uri

    outputs = Path(config.output_dir).resolve()
    uri = requested_uri(config) or default_uri(outputs)
    commit = find_git_commit()
    record = RunRecord(
        folder=str(folder.resolve()),
        outputs=str(outputs),
        uri=hide_password(uri),
        experiment=config.tracking.experiment,
        name=folder.name,
        params={},
        tags={"sweep": folder.name, "kind": "sweep"} | ({"git_sha": commit} if commit is not None else {}),
        started=int(time.time() * 1000),
        sweep=True,
        earlier_id=read_run_id(folder),
    )
    delivery = Delivery(record, uri=uri)
    OUTBOX_OF_PROCESS.add(delivery)
    stopped = False
    try:
        yield
    except BaseException as stop:
        stopped = isinstance(stop, KeyboardInterrupt) or (isinstance(stop, SystemExit) and stop.code != 1)
        delivery.end("KILLED" if stopped else "FAILED")
        raise
    else:
        delivery.end("FINISHED")
    finally:
        OUTBOX_OF_PROCESS.send_left(outputs, uri)
        OUTBOX_OF_PROCESS.flush(stopped=stopped)
        if n_unsent := count_unsent(folder, outputs):
            reason = OUTBOX_OF_PROCESS.failure_reason(uri)
            print(
                f"crux: MLflow does not have {n_unsent} runs of this sweep completely yet{reason}; the next start of a job with "
                f"output_dir={outputs} sends the rest, see {outputs / OUTBOX}",
                file=sys.stderr,
            )
