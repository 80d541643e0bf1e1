"""What a finished job has left behind, in a form in which a killed and resumed job can be compared with an uninterrupted one."""

import json
import re
import sqlite3
from collections import Counter
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

TIMES = re.compile(r"seconds?\b|per_second|speed")
"""Metrics that depend on how fast the machine is."""

NOT_COMPARED = re.compile(r"mlflow_run_id|DONE|output\.log|.*\.ckpt|sweeps/[^/]*/report\.md|sweeps/.*\.png")
"""Files of which only the name is compared: they hold times, paths or random names."""


class FinishedJob(NamedTuple):
    """The files of the run folders of a job, and its runs in MLflow."""

    contents: dict[str, Any]
    """What each file holds, without places and times, by the file's path in the outputs folder, in which folder names have no time."""
    states: list[str]
    """The states of the MLflow runs."""
    rows: list[tuple[str, int, float]]
    """Every metric in MLflow, sorted: name, step, value."""


def read_job(outputs: Path) -> FinishedJob:
    """Read what is in an outputs folder."""
    files = [
        path
        for path in sorted(outputs.rglob("*"))
        if (path.is_file() or not any(path.iterdir())) and path.relative_to(outputs).parts[0] in ("runs", "sweeps")
    ]
    return FinishedJob(
        {_place(path, outputs): _content(path, outputs) for path in files}, *_read_mlflow(outputs / "mlflow.db")
    )


def compare_jobs(job: FinishedJob, whole: FinishedJob) -> str | None:
    """Return how a job differs from an uninterrupted one in its files, in a few words; None if it does not."""
    if missing := whole.contents.keys() - job.contents.keys():
        return f"missing files: {', '.join(sorted(missing)[:3])}"
    if stray := job.contents.keys() - whole.contents.keys():
        return f"stray files: {', '.join(sorted(stray)[:3])}"
    different = [place for place, content in whole.contents.items() if job.contents[place] != content]
    return f"different content: {', '.join(different[:3])}" if different else None


def compare_mlflow(job: FinishedJob, whole: FinishedJob) -> str | None:
    """Return how a job differs from an uninterrupted one in MLflow, in a few words; None if it does not."""
    if job.states != whole.states:
        return f"MLflow runs: {', '.join(job.states)} instead of {', '.join(whole.states)}"
    missing, extra = Counter(whole.rows) - Counter(job.rows), Counter(job.rows) - Counter(whole.rows)
    if missing or extra:  # runs of a sweep may share a row, which is then there several times
        names = ", ".join(sorted({row[0] for row in missing | extra})[:3])
        return f"MLflow rows: {missing.total()} missing, {extra.total()} too many or different, such as {names}"
    return None


def _place(path: Path, outputs: Path) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_", "", str(path.relative_to(outputs)))


def _content(path: Path, outputs: Path) -> Any:
    if path.is_dir() or any(NOT_COMPARED.fullmatch(name) for name in (path.name, str(path.relative_to(outputs)))):
        return None
    if path.name == "config.yaml":
        try:
            config = yaml.safe_load(path.read_bytes())
        except (yaml.YAMLError, ValueError):  # damaged by a campaign
            return path.read_bytes()
        return {key: value for key, value in config.items() if key not in ("output_dir", "cache", "resume", "tracking")}
    if path.name == "metrics.json":
        return {name: value for name, value in json.loads(path.read_text()).items() if not TIMES.search(name)}
    if path.suffix == ".csv":
        table = pd.read_csv(path)
        return table.drop(columns=[name for name in table if TIMES.search(str(name))]).to_csv()
    if path.suffix in (".md", ".html", ".json", ".jsonl"):
        text = path.read_text("utf-8").replace(str(outputs), "")
        return re.sub(r"\d{4}-\d\d-\d\d[_ ]\d\d[-:]\d\d[-:]\d\d", "", text)
    return sha256(path.read_bytes()).hexdigest()


def _read_mlflow(database: Path) -> tuple[list[str], list[tuple[str, int, float]]]:
    if not database.exists():
        return [], []
    with closing(sqlite3.connect(database)) as connection:
        states = connection.execute("select status from runs where lifecycle_stage = 'active'").fetchall()
        rows = connection.execute("select key, step, value from metrics").fetchall()
    return sorted(state for (state,) in states), sorted(row for row in rows if not TIMES.search(row[0]))
