"""The rows of a run's history that MLflow does not have yet, read while the run writes them."""

import json
import re
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

MAX_READ = 1 << 20
"""Maximum number of bytes that are read at once."""


class Value(NamedTuple):
    """One value of a row."""

    key: str
    value: float
    step: int
    time: int
    """Milliseconds since 1970."""


class Block(NamedTuple):
    """Some complete rows that follow each other."""

    values: list[Value]
    """The values that MLflow does not have."""
    n_rows: int
    end: int
    """Position in the file after the last row."""


class HistoryRows:
    """The reader of a history file, from its beginning and then as it grows.

    Args:
        path: the file, which may not exist yet.
        timed: True if this process writes the further rows and notes their times.
    """

    def __init__(self, path: Path, *, timed: bool) -> None:
        self.path = path
        self.times: list[int] = []
        """The times of the rows that this process writes; other rows have the time of the file."""
        self.n_read = 0
        """Number of rows that were accepted."""
        self._offset = 0
        self._first_timed = self.count() if timed else None
        self._known: Mapping[str, Counter[int]] = {}

    def count(self) -> int:
        """Return the number of complete rows in the file."""
        return self.path.read_bytes().count(b"\n") if self.path.exists() else 0

    def start_again(self, known: Mapping[str, Counter[int]]) -> None:
        """Begin at the first row.

        Args:
            known: how often MLflow has each metric at each step; values are crossed off when they are read.
        """
        self._offset = self.n_read = 0
        self._known = known

    def read(self) -> Block | None:
        """Return the next complete rows; None if there are none."""
        if not self.path.exists():
            return None
        with self.path.open("rb") as file:
            file.seek(self._offset)
            content = file.read(MAX_READ)
            while b"\n" not in content and (more := file.read(MAX_READ)):
                content += more
        lines = content.split(b"\n")[:-1]  # what follows the last line break is incomplete
        if not lines:
            return None
        values: list[Value] = []
        for i, row in enumerate(map(_parse_row, lines), self.n_read):
            step = int(row.pop("step"))
            named = [(mlflow_name(key), value) for key, value in row.items()]
            values += [Value(key, value, step, self._time(i)) for key, value in named if self._is_new(key, step)]
        return Block(values, len(lines), self._offset + sum(len(line) + 1 for line in lines))

    def accept(self, block: Block) -> None:
        """Continue after these rows, since MLflow has them now."""
        self._offset, self.n_read = block.end, self.n_read + block.n_rows

    def _is_new(self, key: str, step: int) -> bool:
        """Return False if MLflow has this value already, and cross it off."""
        steps = self._known.get(key)
        if not steps or not steps[step]:
            return True
        steps[step] -= 1
        return False

    def _time(self, row: int) -> int:
        if self._first_timed is not None and 0 <= row - self._first_timed < len(self.times):
            return self.times[row - self._first_timed]
        return int(self.path.stat().st_mtime * 1000)


def mlflow_name(metric: str) -> str:
    """Return the name of a metric in MLflow, which rejects some characters: `final/llc/1e04` for `final/llc/1e+04`."""
    return re.sub(r"[^\w\-. :/]", "", metric)


def now() -> int:
    """Return the time in milliseconds since 1970."""
    return int(time.time() * 1000)


def _parse_row(line: bytes) -> dict[str, float]:
    """Return a row of the history; a damaged one, from which crux refuses to resume, has no values."""
    try:
        row = json.loads(line)
        return {key: float(value) for key, value in row.items()} | {"step": int(row["step"])}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return {"step": 0}
