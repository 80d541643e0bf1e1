"""Run folders that are sent to MLflow without a job, in this process or in another one."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from mlflow import MlflowClient

from crux.runs.delivery import Delivery
from crux.runs.mlflow import default_uri
from crux.runs.record import RunRecord, State, hide_password
from crux.runs.run_folder import RunFolder


def make_folder(path: Path, rows: Iterable[Mapping[str, float]] = ()) -> RunFolder:
    """Create a run folder with a history; each row has its `step`."""
    folder = RunFolder.create(path, {"name": path.name})
    for row in rows:
        folder.add_row(int(row["step"]), {key: value for key, value in row.items() if key != "step"})
    return folder


def make_record(
    folder: Path, outputs: Path, *, uri: str | None = None, params: Mapping[str, str] | None = None
) -> RunRecord:
    """Return the record of a run named after its folder."""
    return RunRecord(
        folder=str(folder),
        outputs=str(outputs),
        uri=hide_password(uri or default_uri(outputs)),
        experiment="crux",
        name=folder.name,
        params=dict(params or {"layer": "6"}),
        tags={"loss": "e2e"},
        started=1_700_000_000_000,
    )


def start_delivery(folder: Path, outputs: Path, *, uri: str | None = None, earlier_id: str | None = None) -> Delivery:
    """Return the delivery of a new start of a run, before anything is sent."""
    record = make_record(folder, outputs, uri=uri)
    record.earlier_id = earlier_id
    return Delivery(record, uri=uri or default_uri(outputs))


def end_delivery(delivery: Delivery, state: State) -> None:
    """End a run and send everything."""
    delivery.end(state)
    delivery.advance()
    assert delivery.sent


def read_curve(client: MlflowClient, run_id: str, key: str) -> list[tuple[int, float]]:
    """Return the steps and values of a metric in MLflow."""
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]


def send_many(outputs: Path, name: str, *, n_steps: int, n_metrics: int) -> None:
    """Send a finished run with rows of metrics."""
    rows = [{"step": step, **{f"train/{i}": float(step) for i in range(n_metrics)}} for step in range(n_steps)]
    folder = make_folder(outputs / "runs" / name, rows)
    end_delivery(
        Delivery(make_record(folder.path, outputs, params={"job": name}), uri=default_uri(outputs)), "FINISHED"
    )


if __name__ == "__main__":  # sends one run to each outputs folder that standard input names
    settings = json.loads(sys.argv[2])
    print("loaded", flush=True)
    for line in sys.stdin:
        send_many(Path(line.strip()), sys.argv[1], **settings)
        print("done", flush=True)
