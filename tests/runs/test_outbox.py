"""The end of a run waits for MLflow as long as there is progress, and the creation of the database is part of it."""

import time
from pathlib import Path

import pytest

from crux.runs import delivery, outbox
from crux.runs.outbox import Outbox
from tests.support.mlflow_runs import make_folder, start_delivery


def test_the_end_of_a_run_waits_for_what_follows_a_slow_creation_of_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The creation alone takes longer than the patience with what follows."""
    monkeypatch.setattr(outbox, "PATIENCE", 1.0)
    prepare = delivery.prepare_store
    connect = delivery.connect

    def prepare_slowly(*arguments: object) -> str:
        experiment_id = prepare(*arguments)  # pyright: ignore[reportArgumentType]
        time.sleep(2)
        return experiment_id

    def connect_slowly(uri: str) -> object:
        time.sleep(0.4)
        return connect(uri)

    monkeypatch.setattr(delivery, "prepare_store", prepare_slowly)
    monkeypatch.setattr(delivery, "connect", connect_slowly)
    folder = make_folder(tmp_path / "outputs" / "runs" / "a", [{"step": 1, "train/loss": 0.5}])
    sent = start_delivery(folder.path, tmp_path / "outputs")
    sender = Outbox()
    sender.add(sent)
    sent.end("FINISHED")
    sender.flush(stopped=False)
    assert sent.sent
    assert (folder.path / "mlflow_run_id").exists()
