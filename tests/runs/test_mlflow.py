"""MLflow runs: a new database that several processes use at once, end states, resumed runs, and errors of the database."""

import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from crux.config.errors import UserError
from crux.runs import mlflow as tracking
from crux.runs.checks import check_tracking
from crux.runs.mlflow import Tracker, default_uri, prepare_store

SRC = Path(__file__).resolve().parents[2] / "src"


def start_run(outputs: Path, uri: str | None = None) -> Tracker:
    return Tracker.start(
        uri or default_uri(outputs),
        experiment="crux",
        outputs=outputs,
        name="e2e L6 λ=1",
        params={"layer": 6},
        tags={"loss": "e2e"},
    )


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an outputs folder in which four processes have started a run at the same time, when there was no database yet."""
    place = tmp_path_factory.mktemp("outputs")
    code = (
        "import sys; from pathlib import Path; from crux.runs.mlflow import Tracker, default_uri\n"
        "outputs = Path(sys.argv[1])\n"
        "sys.stdin.readline()\n"  # wait until every process has imported MLflow
        "t = Tracker.start(default_uri(outputs), experiment='crux', outputs=outputs, name=sys.argv[2], params={}, tags={})\n"
        "t.log_metrics(1, {'train/loss': 1.0})\n"
        "t.end('FINISHED')\n"
    )
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(place), f"job {i}"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=SRC,
        )
        for i in range(4)
    ]
    for job in jobs:
        assert job.stdin is not None
        job.stdin.write("go\n")
        job.stdin.flush()
    for job in jobs:
        _, err = job.communicate(timeout=120)
        assert job.returncode == 0, err
    return place


@pytest.mark.slow
def test_four_processes_that_create_the_database_at_once_share_one_experiment(outputs: Path) -> None:
    client = MlflowClient(default_uri(outputs))
    experiment = client.get_experiment_by_name("crux")
    assert experiment is not None
    assert experiment.artifact_location == (outputs / "artifacts").as_uri()
    found = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'")
    names = [run.info.run_name or "" for run in found]
    # the runs of other tests, which may have run before, are in the same folder
    assert sorted(name for name in names if name.startswith("job")) == [f"job {i}" for i in range(4)]


def test_the_database_is_in_wal_mode(outputs: Path) -> None:
    connection = sqlite3.connect(outputs / "mlflow.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_preparing_the_store_twice_gives_the_same_experiment(outputs: Path) -> None:
    uri = default_uri(outputs)
    assert prepare_store(uri, "crux", outputs) == prepare_store(uri, "crux", outputs)
    assert prepare_store(uri, "another", outputs) != prepare_store(uri, "crux", outputs)


def test_a_resumed_run_stays_one_run(outputs: Path) -> None:
    tracker = start_run(outputs)
    tracker.log_metrics(1, {"train/loss": 2.0, "train/l0": 30.0})
    tracker.end("KILLED")
    assert tracker.client.get_run(tracker.run_id).info.status == "KILLED"
    again = Tracker.resume(default_uri(outputs), tracker.run_id, tags={"job": "a"})
    assert again.client.get_run(again.run_id).info.status == "RUNNING"
    again.log_metrics(2, {"train/loss": 1.0})
    again.end("FINISHED")
    run = again.client.get_run(tracker.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "e2e L6 λ=1")
    assert run.info.end_time is not None
    assert run.data.tags["job"] == "a"
    assert (run.data.params, run.data.tags["loss"]) == ({"layer": "6"}, "e2e")
    curve = again.client.get_metric_history(tracker.run_id, "train/loss")
    assert [(m.step, m.value) for m in curve] == [(1, 2.0), (2, 1.0)]


def test_files_of_a_run_folder_are_logged_except_checkpoints_and_the_run_id(outputs: Path, tmp_path: Path) -> None:
    for name in (
        "config.yaml",
        "metrics.json",
        "mlflow_run_id",
        "figures/a.png",
        "sae/cfg.json",
        "checkpoints/last.ckpt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    tracker = start_run(outputs)
    tracker.log_files(tmp_path)
    found = {a.path for place in ("", "figures", "sae") for a in tracker.client.list_artifacts(tracker.run_id, place)}
    assert found == {"config.yaml", "metrics.json", "figures", "figures/a.png", "sae", "sae/cfg.json"}


def test_a_missing_run_cannot_be_resumed(outputs: Path) -> None:
    with pytest.raises(UserError, match=r"MLflow cannot use sqlite:///.*tracking=none"):
        Tracker.resume(default_uri(outputs), "0" * 32, tags={})


def test_a_locked_database_is_a_user_error(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "LOCK_SECONDS", 0.1)
    holder = sqlite3.connect(outputs / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(UserError, match="database is locked"):
            start_run(outputs)
    finally:
        holder.close()
    start_run(outputs).end("FINISHED")


def test_a_database_that_cannot_be_opened_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, though of some length\n" * 100)
    with pytest.raises(UserError, match="file is not a database"):
        start_run(tmp_path)
    with pytest.raises(UserError, match="unable to open database file"):
        start_run(tmp_path, uri=f"sqlite:///{tmp_path}/missing/mlflow.db")


def test_a_server_that_does_not_answer_is_a_user_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # it listens, which is all that is checked
        port = server.getsockname()[1]
        check_tracking(f"http://127.0.0.1:{port}")
    # now it is closed
    with pytest.raises(UserError, match=rf"http://127\.0\.0\.1:{port} does not answer .* tracking=none"):
        check_tracking(f"http://127.0.0.1:{port}")
    with pytest.raises(UserError, match="does not answer"):
        check_tracking("https://nowhere.invalid")


def test_only_uri_schemes_that_mlflow_supports_are_accepted() -> None:
    with pytest.raises(UserError, match="allowed are http, https, sqlite"):
        check_tracking("mlruns")
    for uri in (None, "sqlite:////somewhere/mlflow.db", "postgresql+psycopg2://user@host/base"):
        check_tracking(uri)
