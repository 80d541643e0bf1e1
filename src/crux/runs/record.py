"""The record of a run for MLflow, on disk until MLflow has everything, so that a later start can send what an earlier one could not."""

import hashlib
import json
import re
import uuid
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, NamedTuple

from crux.config.schema import Job
from crux.runs.run_folder import RunFolder

OUTBOX = "mlflow_unsent"
"""Folder in the outputs folder with one file per run that MLflow does not show completely."""

RUN_ID = "mlflow_run_id"
"""File in a run folder with the id of its MLflow run."""

State = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


class TextDataset(NamedTuple):
    """The text of a job, as MLflow shows it."""

    name: str
    digest: str
    """At most 36 characters; equal texts have equal digests."""
    n_tokens: int
    source: str
    """The source of the text: a folder, or the name of a data set."""


@dataclass
class RunRecord:
    """The contents of a run in MLflow that are not in the run folder, which has the history, the metrics and the files."""

    folder: str
    """The run folder, or the folder of a sweep."""
    outputs: str
    """The outputs folder."""
    uri: str
    """The server or database, without a password."""
    experiment: str
    name: str
    params: dict[str, str]
    tags: dict[str, str]
    started: int
    """Time of the start in milliseconds since 1970."""
    sweep: bool = False
    """True if this is the parent run of a sweep."""
    parent: str | None = None
    """The folder of the parent run; None if the run has none."""
    dataset: list[str | int] | None = None
    """The fields of a TextDataset."""
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    """The value of the tag by which a run is found that was created just before its process was killed."""
    earlier_id: str | None = None
    """The id of the MLflow run of an earlier start, which may no longer exist."""
    run_id: str | None = None
    """The id of the MLflow run, once it exists."""
    state: State = "RUNNING"
    ended: int | None = None
    """Time of the end, as `started`."""
    failure: str | None = None
    """Reason of the failure, in one line."""
    note: str | None = None
    """The run's description, in Markdown."""
    superseded: bool = False
    """True if the folder belongs to another MLflow run now, so that this one only has to end."""

    @classmethod
    def read(cls, path: Path) -> "RunRecord | None":
        """Return the record in a file; None if there is none that can be read."""
        try:
            values = json.loads(path.read_text("utf-8"))
            return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def describes_same_run(self, other: "RunRecord") -> bool:
        """Return True if two records are of the same run in the same place, so that they are one MLflow run."""
        names = ("folder", "uri", "experiment", "name", "params", "sweep")
        return all(getattr(self, name) == getattr(other, name) for name in names)


def hide_password(uri: str) -> str:
    """Return a URI without its password."""
    return re.sub(r"(://[^/@:]*:)[^/@]*@", r"\1***@", uri)


def database_path(uri: str) -> Path | None:
    """Return the file of a sqlite database; None for servers and other databases."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


def find_outputs(config: Job, folder: Path) -> Path:
    """Return the outputs folder of a run folder, which differs from `output_dir` if `resume_from` names a run elsewhere."""
    return folder.resolve().parents[1] if folder.resolve().parent.name == "runs" else Path(config.output_dir).resolve()


def read_run_id(folder: Path) -> str | None:
    """Return the id of the MLflow run of an earlier start in a run folder; None if there is none that can be one."""
    try:
        text = (folder / RUN_ID).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if re.fullmatch(r"[a-zA-Z0-9][\w-]{0,255}", text) else None


def entry_path(outputs: Path, folder: Path) -> Path:
    """Return the file in the outbox for a run folder."""
    resolved = folder.resolve()
    digest = hashlib.blake2b(str(resolved).encode(), digest_size=6).hexdigest()
    name = re.sub(r"[^\w.,=+-]", "_", resolved.name, flags=re.ASCII)[:80]
    return outputs / OUTBOX / f"{name}-{digest}.json"


def is_unsent(config: Job, folder: RunFolder) -> bool:
    """Return True if MLflow does not have everything of a job, whose runs may have folders within its own."""
    return count_unsent(folder.path, find_outputs(config, folder.path)) > 0


def count_unsent(folder: Path, outputs: Path) -> int:
    """Return the number of runs that MLflow does not have completely, of a run folder or sweep folder and the folders within."""
    records = [RunRecord.read(path) for path in list_entries(outputs)]
    return sum(record is not None and Path(record.folder).is_relative_to(folder.resolve()) for record in records)


def list_entries(outputs: Path) -> list[Path]:
    """Return the files in the outbox, oldest first."""
    return sorted((outputs / OUTBOX).glob("*.json"), key=_modified)


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # removed just now
        return 0
