"""Send one run to MLflow: parameters, rows, final metrics, files and the state in which it ended, each once."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag

from crux.config.errors import UserError
from crux.config.files import write_text
from crux.runs.entry import Entry
from crux.runs.history_rows import HistoryRows, mlflow_name, now
from crux.runs.mlflow import TrackingError, connect, find_run, prepare_store, was_replaced
from crux.runs.record import RUN_ID, RunRecord, State, TextDataset, database_path, entry_path, read_run_id
from crux.runs.run_folder import RunFolder

KEY_TAG = "crux.key"
"""The tag by which a run is found that was created just before its process was killed."""

PARENT_TAG = "mlflow.parentRunId"
"""MLflow's tag for the id of a run's parent."""

MAX_NOTE_LENGTH = 5000
"""Maximum number of characters of a run's description; MLflow rejects longer tags."""

MAX_METRICS, MAX_PARAMS = 1000, 100
"""Maximum numbers of values in one call of MLflow."""


class ParentPendingError(TrackingError):
    """The parent run does not exist yet; its own process creates it."""


class Delivery:
    """The transmission of one run. A failure may come after MLflow has received what was sent, so that what it has is compared first.

    `advance` and everything it calls belongs to the thread of the outbox; the other methods belong to the job.

    Args:
        record: what MLflow is to show.
        uri: the server or database, with its password.
        entry: the record's file in the outbox, if an earlier process has left it; None: it is created.
    """

    def __init__(self, record: RunRecord, *, uri: str, entry: Entry | None = None) -> None:
        if database_path(uri) is not None:  # now, since imports in another thread can disturb those of the job
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
        self.record, self.uri, self.folder = record, uri, RunFolder(Path(record.folder))
        self.sent = False
        """True once MLflow shows everything, including the end."""
        self.experiment_id: str | None = None
        self.preparing = False
        """True while the database is created, which takes many seconds."""
        self.waits = False
        """True if the parent run does not exist yet."""
        self.failures = 0
        """Number of failed attempts: those that fail do not keep the others waiting."""
        self.on_progress: Callable[[], None] = lambda: None
        """Called after each successful step."""
        self._created_now = entry is None
        self._open, self._unclear = False, not self._created_now
        self.entry = entry or self._create_entry()
        self._rows = HistoryRows(self.folder.path / "history.jsonl", timed=self._created_now)

    def _create_entry(self) -> Entry | None:
        key = self.record.key
        entry = Entry.create(entry_path(Path(self.record.outputs), self.folder.path), self.record)
        self._unclear = self._unclear or self.record.key != key  # an earlier start may have created the run
        return entry

    # for the job

    def note_time(self) -> None:
        """Note the time of the row that is about to be written to the history."""
        self._rows.times.append(now())

    def describe(self, note: str | None) -> None:
        """Keep the description of the run, in Markdown."""
        self.record.note = note
        self._save()

    def end(self, state: State, *, failure: str | None = None) -> None:
        """Keep the state in which the run ended."""
        self.record.ended, self.record.state = now(), state  # the thread reads the state
        self.record.failure = failure or self.record.failure
        with suppress(OSError, UserError):  # a full disk: the run folder says the same
            self._save()

    def describe_unsent(self) -> str:
        """Return what MLflow does not show yet, in a few words."""
        if not self._open and self.record.run_id is None:
            return "the run"
        n = self._rows.count() - self._rows.n_read
        rows = [f"{n} row{'s' if n > 1 else ''}"] if n > 0 else []
        final = ["the final metrics and files"] if self.record.state == "FINISHED" and not self.record.sweep else []
        return " and ".join([*rows, *final]) or "its end"

    def _save(self) -> None:
        if self.entry is not None:
            self.entry.save()

    # for the thread of the outbox

    def forget_connection(self) -> None:
        """After a failure: whatever was sent last may have arrived or not."""
        self._open, self._unclear = False, True

    def advance(self) -> None:
        """Send everything that is there to send.

        Raises:
            ParentPendingError: if the run's parent is not there yet.
            Exception: whatever MLflow, its database or its server raises.
        """
        if self.entry is None:
            self.entry = self._create_entry()
            if self.entry is None:
                raise TrackingError(f"another process is sending {self.folder.path}")
        self._check_database_file()
        if not self._open:
            self._open_run()
        state = self.record.state  # before the rows: none is added after the end
        if not self.record.superseded:
            self._send_rows()
        if state != "RUNNING":
            self._send_end(state)

    def _check_database_file(self) -> None:
        """Notice that the database was deleted."""
        if self._open and was_replaced(self.uri):
            self.forget_connection()
            raise TrackingError("it was deleted; a new one is created")

    def _open_run(self) -> None:
        """Create the run, or find the one that an earlier attempt or start has created."""
        record = self.record
        self.preparing = database_path(self.uri) is not None
        try:
            self.experiment_id = prepare_store(self.uri, record.experiment, Path(record.outputs))
        finally:
            self.preparing = False
        self.on_progress()  # the end of a run waits less for what follows the creation of the database
        client = connect(self.uri)
        tags = record.tags | self._parent_tags() | {KEY_TAG: record.key}
        run = self._find_run(client)
        if run is None:
            if record.superseded:
                record.state = "KILLED"
                self._open = True
                return
            unclear, self._unclear = self._unclear, True  # if this fails, the run may exist nevertheless
            run = client.create_run(self.experiment_id, start_time=record.started, tags=tags, run_name=record.name)
            self._unclear = unclear
            self._rows.start_again({})
        else:
            self._rows.start_again({} if record.superseded else read_steps(client, run))
            missing = [RunTag(key, value) for key, value in tags.items() if run.data.tags.get(key) != value]
            if missing:
                client.log_batch(run.info.run_id, tags=missing)
            if record.state == "RUNNING" and run.info.status != "RUNNING":
                client.update_run(run.info.run_id, status="RUNNING")
        self._keep_id(run.info.run_id)
        params = [Param(k, v) for k, v in record.params.items() if k not in run.data.params]
        for i in range(0, len(params), MAX_PARAMS):
            client.log_batch(run.info.run_id, params=params[i : i + MAX_PARAMS])
        if record.dataset is not None:
            client.log_inputs(run.info.run_id, datasets=[dataset_input(TextDataset(*record.dataset))])  # pyright: ignore[reportArgumentType]
        if record.sweep:
            self._settle_children(client)
        self._open = True
        self.on_progress()

    def _settle_children(self, client: MlflowClient) -> None:
        """End the runs of jobs that MLflow shows as RUNNING although no process sends them, such as those of an older crux."""
        assert self.experiment_id is not None
        filters = f"tags.`{PARENT_TAG}` = '{self.record.run_id}' and attributes.status = 'RUNNING'"
        for run in client.search_runs([self.experiment_id], filters):
            folder = Path(run.data.tags.get("run_folder", self.folder.path / run.data.tags.get("job", "")))
            if not entry_path(Path(self.record.outputs), folder).exists():
                client.set_terminated(run.info.run_id, "FINISHED" if RunFolder(folder).done else "KILLED")

    def _find_run(self, client: MlflowClient) -> Run | None:
        """Return the run of an earlier start or attempt, if MLflow has it."""
        record = self.record
        run_id = record.run_id or record.earlier_id
        run = find_run(client, run_id) if run_id is not None else None
        if run is not None and run.info.lifecycle_stage == "deleted":
            if not self._created_now:  # the user has deleted a run whose process has ended: it is not created again
                record.superseded, record.run_id = True, None
            return None
        if run is not None and all(run.data.params.get(k, v) == v for k, v in record.params.items()):
            return run
        return next(self._runs_with_key(client), None) if self._unclear else None

    def _runs_with_key(self, client: MlflowClient) -> Iterator[Run]:
        assert self.experiment_id is not None
        yield from client.search_runs([self.experiment_id], f"tags.`{KEY_TAG}` = '{self.record.key}'")

    def _keep_id(self, run_id: str) -> None:
        if self.record.run_id != run_id:
            self.record.run_id = run_id
            self._save()
        if not self.record.superseded and read_run_id(self.folder.path) != run_id:
            write_text(self.folder.path / RUN_ID, run_id + "\n")

    def _parent_tags(self) -> dict[str, str]:
        """Return the tags that name the parent.

        Raises:
            ParentPendingError: if the parent is still to be created.
        """
        if self.record.parent is None:
            return {}
        parent = Path(self.record.parent)
        waiting = RunRecord.read(entry_path(Path(self.record.outputs), parent))
        if waiting is not None and waiting.run_id is None:
            raise ParentPendingError(f"the run of {parent} does not exist yet")
        if waiting is not None and waiting.run_id is not None:
            return {PARENT_TAG: waiting.run_id}
        parent_id = read_run_id(parent)
        return {PARENT_TAG: parent_id} if parent_id is not None else {}

    def _send_rows(self) -> None:
        """Send the rows of the history that MLflow does not have."""
        assert self.record.run_id is not None
        client = connect(self.uri)
        while block := self._rows.read():
            metrics = [Metric(value.key, value.value, value.time, value.step) for value in block.values]
            for i in range(0, len(metrics), MAX_METRICS):
                client.log_batch(self.record.run_id, metrics=metrics[i : i + MAX_METRICS])
                self.on_progress()
            self._rows.accept(block)

    def _send_end(self, state: State) -> None:
        """Send the final metrics, the files and the state."""
        record, client = self.record, connect(self.uri)
        if record.run_id is not None:
            if state == "FINISHED" and not record.sweep:
                self._send_final_metrics(client, record.run_id)
            if not record.superseded and (state == "FINISHED" or record.sweep):
                self._send_files(client, record.run_id)
            if record.failure is not None:
                client.set_tag(record.run_id, "failure", record.failure[:MAX_NOTE_LENGTH])
            client.set_terminated(record.run_id, status=state, end_time=record.ended)
            if self._unclear:  # an attempt to create the run may have succeeded after it was given up
                for run in self._runs_with_key(client):
                    if run.info.run_id != record.run_id:
                        client.delete_run(run.info.run_id)
        self.sent = True
        if self.entry is not None:
            self.entry.remove()
        self.on_progress()

    def _send_final_metrics(self, client: MlflowClient, run_id: str) -> None:
        path = self.folder.path / "metrics.json"
        if not path.exists():
            return
        final = {mlflow_name(name): float(value) for name, value in json.loads(path.read_text("utf-8")).items()}
        run = client.get_run(run_id).data
        if "failure" in run.tags:  # of an earlier start
            client.delete_tag(run_id, "failure")
        ended = self.record.ended or now()
        # always at step 0: MLflow draws bars for single values
        metrics = [
            Metric(k, v, ended, 0) for k, v in final.items() if k not in run.metrics or not _same(run.metrics[k], v)
        ]
        for i in range(0, len(metrics), MAX_METRICS):
            client.log_batch(run_id, metrics=metrics[i : i + MAX_METRICS])
            self.on_progress()
        if final.get("final/diverged"):  # also as a tag, by which runs can be left out of a table
            client.set_tag(run_id, "diverged", "true")

    def _send_files(self, client: MlflowClient, run_id: str) -> None:
        """Send the files at the top of the run folder, the figures and the SAE as artifacts, and the description."""
        folder = self.folder.path
        endings = (".md", ".csv") if self.record.sweep else (".yaml", ".json", ".jsonl", ".html")
        top = [p for p in folder.iterdir() if p.is_file() and p.suffix in endings and not p.name.startswith(".")]
        below = [p for name in ("figures", "sae") for p in (folder / name).rglob("*") if p.is_file()]
        for path in sorted(top) + sorted(below):
            place = path.parent.relative_to(folder)
            client.log_artifact(run_id, str(path), None if place == Path() else str(place))
            self.on_progress()
        report = folder / "report.md"
        note = self.record.note or (report.read_text("utf-8") if report.exists() else None)
        if note:
            cut = note if len(note) <= MAX_NOTE_LENGTH else note[: MAX_NOTE_LENGTH - 2] + "\n…"
            client.set_tag(run_id, "mlflow.note.content", cut)


def set_end_state(record: RunRecord) -> None:
    """Set the state of a run whose process was killed to what its folder says."""
    folder = RunFolder(Path(record.folder))
    if not folder.path.exists():
        record.superseded = True
    if record.state != "RUNNING":
        return
    if folder.done and not record.sweep:
        record.state, last = "FINISHED", folder.path / "DONE"
    elif folder.failed:
        record.state, record.failure, last = "FAILED", folder.failure_reason(), folder.path / "FAILED"
    else:
        record.state, last = "KILLED", folder.path / "history.jsonl"
    record.ended = int(last.stat().st_mtime * 1000) if last.exists() else record.started


def read_steps(client: MlflowClient, run: Run) -> dict[str, Counter[int]]:
    """Return how often MLflow has each metric of a run at each step."""
    return {
        key: Counter(metric.step for metric in client.get_metric_history(run.info.run_id, key))
        for key in run.data.metrics
    }


def dataset_input(text: TextDataset) -> DatasetInput:
    """Return the text of a job as MLflow's input of a run."""
    dataset = Dataset(
        name=text.name,
        digest=text.digest,
        source_type="local",
        source=json.dumps({"uri": text.source}),
        profile=json.dumps({"num_tokens": text.n_tokens}),
    )
    return DatasetInput(dataset, tags=[InputTag("mlflow.data.context", "training")])


def _same(a: float, b: float) -> bool:
    # MLflow keeps an infinite value as the largest number
    return a == b or (math.isnan(a) and math.isnan(b)) or (math.isinf(b) and abs(a) > 1e308)
