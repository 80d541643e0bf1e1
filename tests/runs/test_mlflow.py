"""MLflow runs: a new database that several processes use at once, end states, resumed runs, and faults of the database."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from crux.config.errors import UserError
from crux.runs import database
from crux.runs.checks import check_tracking
from crux.runs.command_line import command_line, job_overrides
from crux.runs.delivery import Delivery, set_end_state
from crux.runs.entry import Entry
from crux.runs.history_rows import mlflow_name
from crux.runs.mlflow import TrackingError, connect, default_uri, explain_failure, prepare_store
from crux.runs.record import TextDataset, entry_path, hide_password
from crux.runs.view import view_state
from tests.support.mlflow_runs import end_delivery, make_folder, read_curve, start_delivery

ROOT = Path(__file__).resolve().parents[2]
ROWS = [{"step": step, "train/loss": 1 / step, "train/l0": 30.0} for step in range(1, 6)]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an outputs folder in which four processes have started a run at the same time, when there was no database yet."""
    place = tmp_path_factory.mktemp("outputs")
    line = [sys.executable, "-m", "tests.support.mlflow_runs"]
    jobs = [
        subprocess.Popen(
            [*line, f"job {i}", json.dumps({"n_steps": 2, "n_metrics": 1})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for i in range(4)
    ]  # fmt: skip
    for job in jobs:
        assert job.stdin is not None
        assert job.stdout is not None
        assert job.stdout.readline() == "loaded\n"  # wait until every process has imported MLflow
    for job in jobs:
        assert job.stdin is not None
        job.stdin.write(f"{place}\n")
        job.stdin.flush()
    for job in jobs:
        _, err = job.communicate(timeout=120)
        assert job.returncode == 0, err
    return place


def client_of(outputs: Path) -> MlflowClient:
    return connect(default_uri(outputs))


@pytest.mark.slow
def test_four_processes_that_create_the_database_at_once_share_one_experiment(outputs: Path) -> None:
    client = client_of(outputs)
    experiment = client.get_experiment_by_name("crux")
    assert experiment is not None
    assert experiment.artifact_location == (outputs / "artifacts").as_uri()
    found = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'")
    names = [run.info.run_name or "" for run in found]
    # the runs of other tests, which may have run before, are in the same folder
    assert sorted(name for name in names if name.startswith("job")) == [f"job {i}" for i in range(4)]


def test_the_database_is_in_wal_mode(outputs: Path) -> None:
    with closing(sqlite3.connect(outputs / "mlflow.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_preparing_the_store_twice_gives_the_same_experiment(outputs: Path) -> None:
    uri = default_uri(outputs)
    assert prepare_store(uri, "crux", outputs) == prepare_store(uri, "crux", outputs)
    assert prepare_store(uri, "another", outputs) != prepare_store(uri, "crux", outputs)


def test_the_experiment_is_marked_as_training_and_has_a_prepared_view(outputs: Path) -> None:
    tags = client_of(outputs).get_experiment(prepare_store(default_uri(outputs), "crux", outputs)).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert json.loads(tags["mlflow.sharedViewState.crux"]) == view_state()


def test_a_resumed_run_stays_one_run_and_has_each_row_once(outputs: Path) -> None:
    folder = make_folder(outputs / "runs" / "resumed", ROWS)
    first = start_delivery(folder.path, outputs)
    end_delivery(first, "KILLED")
    client, run_id = client_of(outputs), (folder.path / "mlflow_run_id").read_text().strip()
    assert client.get_run(run_id).info.status == "KILLED"
    folder.drop_rows_after(3)  # the last checkpoint
    again = start_delivery(folder.path, outputs, earlier_id=run_id)
    again.advance()
    assert client.get_run(run_id).info.status == "RUNNING"
    for step in (4, 5, 6):
        again.note_time()
        folder.add_row(step, {"train/loss": 1 / step, "train/l0": 30.0})
        again.advance()
    folder.write_metrics({"final/l0": 29.5})
    folder.finish()
    end_delivery(again, "FINISHED")
    run = client.get_run(run_id)
    assert (run.info.status, run.info.run_name, run.info.start_time) == ("FINISHED", "resumed", 1_700_000_000_000)
    assert run.info.end_time is not None
    assert (run.data.params, run.data.tags["loss"]) == ({"layer": "6"}, "e2e")
    assert read_curve(client, run_id, "train/loss") == [(step, 1 / step) for step in range(1, 7)]
    assert read_curve(client, run_id, "final/l0") == [(0, 29.5)]
    assert not entry_path(outputs, folder.path).exists()


def test_a_row_whose_answer_was_lost_is_sent_once(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(outputs / "runs" / "lost", ROWS)
    delivery = start_delivery(folder.path, outputs)
    original, n_calls = MlflowClient.log_batch, []

    def log_and_lose(self: MlflowClient, run_id: str, **values: object) -> None:
        original(self, run_id, **values)  # pyright: ignore[reportArgumentType]
        if values.get("metrics"):
            n_calls.append(1)
            raise OSError("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", log_and_lose)
        with pytest.raises(OSError, match="the answer was lost"):
            delivery.advance()
    assert n_calls == [1]
    delivery.forget_connection()
    end_delivery(delivery, "KILLED")
    run_id = (folder.path / "mlflow_run_id").read_text().strip()
    assert read_curve(client_of(outputs), run_id, "train/l0") == [(step, 30.0) for step in range(1, 6)]


def test_a_run_that_was_created_just_before_a_kill_is_found_again(outputs: Path) -> None:
    folder = make_folder(outputs / "runs" / "orphan", ROWS)
    killed = start_delivery(folder.path, outputs)
    killed.advance()
    first = (folder.path / "mlflow_run_id").read_text()
    assert killed.entry is not None
    killed.record.run_id = None  # as if it was killed before the id was written
    killed.entry.save()
    killed.entry.release()
    (folder.path / "mlflow_run_id").unlink()
    end_delivery(start_delivery(folder.path, outputs), "KILLED")
    assert (folder.path / "mlflow_run_id").read_text() == first


@pytest.mark.parametrize("sent_first", [True, False])
def test_a_record_that_is_sent_while_its_run_is_resumed_makes_no_second_run(outputs: Path, sent_first: bool) -> None:
    folder = make_folder(outputs / "runs" / f"claimed_{sent_first}", ROWS[:3])
    killed = start_delivery(folder.path, outputs)
    assert killed.entry is not None
    killed.entry.release()  # it was killed before MLflow had its run
    entry = Entry.claim(killed.entry.path)
    assert entry is not None
    set_end_state(entry.record)
    left = Delivery(entry.record, uri=default_uri(outputs), entry=entry)
    resumed = start_delivery(folder.path, outputs) if not sent_first else None
    left.advance()
    folder.add_row(4, {"train/l0": 31.0})
    end_delivery(resumed or start_delivery(folder.path, outputs), "FINISHED")
    client = client_of(outputs)
    experiment_id = prepare_store(default_uri(outputs), "crux", outputs)
    (run,) = client.search_runs([experiment_id], f"attributes.run_name = '{folder.path.name}'")
    assert run.info.status == "FINISHED"
    assert read_curve(client, run.info.run_id, "train/l0") == [(1, 30.0), (2, 30.0), (3, 30.0), (4, 31.0)]


def test_a_run_of_a_deleted_database_is_sent_again_as_a_whole(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "runs" / "a", ROWS)
    delivery = start_delivery(folder.path, tmp_path)
    delivery.advance()
    for path in tmp_path.glob("mlflow.db*"):
        path.unlink()
    folder.add_row(6, {"train/loss": 0.1})
    with pytest.raises(TrackingError, match="it was deleted"):
        delivery.advance()
    end_delivery(delivery, "KILLED")
    run_id = (folder.path / "mlflow_run_id").read_text().strip()
    client = client_of(tmp_path)
    assert client.get_run(run_id).info.status == "KILLED"
    assert [step for step, _ in read_curve(client, run_id, "train/loss")] == [1, 2, 3, 4, 5, 6]


def test_the_text_and_the_description_are_shown(outputs: Path) -> None:
    folder = make_folder(outputs / "runs" / "described", ROWS)
    delivery = start_delivery(folder.path, outputs)
    delivery.record.dataset = list(TextDataset("kjv", "0123abcd", 5000, "packaged"))
    delivery.describe("| L0 |\n| --- |\n| 30 |")
    end_delivery(delivery, "FINISHED")
    run = client_of(outputs).get_run((folder.path / "mlflow_run_id").read_text().strip())
    assert run.inputs is not None
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("kjv", "0123abcd")
    assert json.loads(given.dataset.profile or "") == {"num_tokens": 5000}
    assert run.data.tags["mlflow.note.content"].startswith("| L0 |")


def test_files_of_a_run_folder_are_logged_except_checkpoints_and_the_run_id(outputs: Path) -> None:
    folder = make_folder(outputs / "runs" / "files").path
    for name in ("metrics.json", "figures/a.png", "sae/cfg.json", "checkpoints/last.ckpt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    end_delivery(start_delivery(folder, outputs), "FINISHED")
    client, run_id = client_of(outputs), (folder / "mlflow_run_id").read_text().strip()
    found = {a.path for place in ("", "figures", "sae") for a in client.list_artifacts(run_id, place)}
    assert found == {"config.yaml", "metrics.json", "figures", "figures/a.png", "sae", "sae/cfg.json"}


def test_a_deleted_experiment_is_named_with_what_to_do(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    experiment_id = prepare_store(uri, "mine", tmp_path)
    client_of(tmp_path).delete_experiment(experiment_id)
    with pytest.raises(
        TrackingError, match=rf"experiment mine was deleted: restore .* --experiment-id {experiment_id}"
    ):
        prepare_store(uri, "mine", tmp_path)
    client_of(tmp_path).restore_experiment(experiment_id)
    assert prepare_store(uri, "mine", tmp_path) == experiment_id


def test_failures_are_explained_in_a_few_words(outputs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.1)
    with closing(sqlite3.connect(outputs / "mlflow.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError) as locked:
            prepare_store(default_uri(outputs), "crux", outputs)
    (tmp_path / "mlflow.db").write_text("not a database, though of some length\n" * 100)
    with pytest.raises(sqlite3.DatabaseError) as broken:
        prepare_store(default_uri(tmp_path), "crux", tmp_path)
    with pytest.raises(ImportError) as missing:
        prepare_store("postgresql://u@127.0.0.1:9/d", "crux", tmp_path)
    assert explain_failure(locked.value) == "database is locked"
    assert explain_failure(broken.value) == "file is not a database"
    assert explain_failure(missing.value).startswith("its driver is missing: No module named 'psycopg")
    text = "API request to http://h:5 failed with exception X (Caused by Y: [Errno 111] Connection refused'))"
    assert explain_failure(RuntimeError(text)) == "Connection refused"
    assert explain_failure(RuntimeError("HTTPConnectionPool: Read timed out. (read timeout=8)")) == "it does not answer"


@pytest.mark.parametrize(
    "uri",
    ["mlruns", "file:./mlruns", "file:///mlruns", "elsewhere://x", "http://h:abc", "http://h:99999", "https://", "http:///x", "sqlite://",
     "sqlite:///", "sqlite:///:memory:", "sqlite:////tmp", "postgresql://u@h:123456/d", "http:h", ""],
)  # fmt: skip
def test_a_uri_that_is_a_mistake_is_refused_in_one_line(uri: str) -> None:
    with pytest.raises(UserError, match=r"tracking\.uri=") as refusal:
        check_tracking(uri)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "uri",
    [
        None,
        "sqlite:////somewhere/mlflow.db",
        "postgresql+psycopg2://user@host/base",
        "http://127.0.0.1:9",
        "https://u:p@h/x",
        "databricks",
    ],
)
def test_other_uris_are_accepted_whether_they_answer_or_not(uri: str | None) -> None:
    check_tracking(uri)


def test_the_command_line_ends_with_what_mlflow_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["src/main.py", "-m", "loss=local,e2e"])
    with job_overrides(["loss=local", "experiment=toy/basic", "output_dir=/tmp/a b", "layer=2"]):
        assert command_line() == "src/main.py 'output_dir=/tmp/a b' experiment=toy/basic loss=local layer=2"
    assert command_line() == "src/main.py -m loss=local,e2e"


def test_passwords_are_not_shown() -> None:
    assert hide_password("postgresql://me:secret@host:5/d") == "postgresql://me:***@host:5/d"
    assert hide_password("http://host:5000") == "http://host:5000"
    with pytest.raises(UserError) as refusal:
        check_tracking("http://me:secret@host:99999")
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("statement", ["DROP TABLE alembic_version", "DELETE FROM alembic_version", "DROP TABLE runs"])
def test_a_half_created_database_is_replaced_and_kept(statement: str, outputs: Path, tmp_path: Path) -> None:
    """An older crux let MLflow create the tables in place, and a kill left a database that no MLflow can use."""
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as half, half:
        with closing(sqlite3.connect(outputs / "mlflow.db")) as whole:
            whole.backup(half)
        half.execute("PRAGMA foreign_keys = OFF")
        half.execute("DELETE FROM runs")
        half.execute("CREATE TABLE _alembic_tmp_metrics (x)")
        half.execute(statement)
    assert prepare_store(default_uri(tmp_path), "crux", tmp_path) == "1"
    assert (tmp_path / "mlflow.db.half-created").exists()


def test_a_database_with_runs_is_never_replaced(outputs: Path, tmp_path: Path) -> None:
    folder = make_folder(outputs / "runs" / "kept", ROWS)
    end_delivery(start_delivery(folder.path, outputs), "KILLED")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as old, old:
        with closing(sqlite3.connect(outputs / "mlflow.db")) as whole:
            whole.backup(old)
        old.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")  # of an older MLflow
    with pytest.raises(Exception, match="mlflow db upgrade"):
        prepare_store(default_uri(tmp_path), "crux", tmp_path)
    assert not (tmp_path / "mlflow.db.half-created").exists()


@pytest.mark.parametrize(
    ("name", "in_mlflow"),
    [("final/llc/1e+04", "final/llc/1e04"), ("train/loss", "train/loss"), ("a b:c-d.e_f/0", "a b:c-d.e_f/0")],
)
def test_metrics_have_names_that_mlflow_accepts(name: str, in_mlflow: str) -> None:
    assert mlflow_name(name) == in_mlflow
