"""The history of a run: one line of JSON per logged row, and in a file next to it the step and checksum of each line.

A line's checksum is written before the line, so that there is never a line without one, whenever the process is killed.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from crux.config.errors import UserError
from crux.config.files import explain_full_disk, replacing


class _Sum(NamedTuple):
    """The description of one line."""

    step: int
    checksum: int
    """CRC-32 of the line without its end."""


class History:
    """The rows of a run, in `history.jsonl` and `history.crc`."""

    def __init__(self, folder: Path) -> None:
        self.path, self.sums = folder / "history.jsonl", folder / "history.crc"

    def add(self, step: int, row: Mapping[str, float]) -> None:
        """Append a row."""
        line = json.dumps({"step": step, **row}).encode()
        for path, text in ((self.sums, _format_sum(step, line)), (self.path, line + b"\n")):
            with explain_full_disk(path), path.open("ab") as file:
                file.write(text)

    def read(self) -> list[dict[str, float]]:
        """Return the rows.

        Raises:
            UserError: if a line is not a row of numbers, except for an incomplete last line, which a kill may have cut.
        """
        return [self._parse(line, number) for number, line in enumerate(_lines(self.path), 1)]

    def keep_until(self, step: int) -> None:
        """Remove the rows after this step, and check that the others are as they were written.

        Raises:
            UserError: if a line was changed, added or removed.
        """
        lines = _lines(self.path)
        if not self.sums.exists():  # written by an earlier version of crux
            lines = [line for number, line in enumerate(lines, 1) if self._parse(line, number)["step"] <= step]
            self._write(lines)
            return
        sums = self._read_sums()
        kept: list[bytes] = []
        for i, expected in enumerate(sums):
            if i >= len(lines):
                if expected.step <= step:
                    raise self._damaged(i + 1, "it is missing")
            elif expected.step <= step:
                if zlib.crc32(lines[i]) != expected.checksum:
                    raise self._damaged(i + 1, "its checksum is wrong")
                kept.append(lines[i])
        if len(lines) > len(sums):
            raise self._damaged(len(sums) + 1, "it has no checksum")
        self._write(kept)

    def _write(self, lines: list[bytes]) -> None:
        """Write both files; after a kill between the two, the checksums of removed rows are left, which does no harm."""
        sums = [_format_sum(int(self._parse(line, number)["step"]), line) for number, line in enumerate(lines, 1)]
        for path, text in ((self.path, b"".join(line + b"\n" for line in lines)), (self.sums, b"".join(sums))):
            with replacing(path) as temporary:
                temporary.write_bytes(text)

    def _read_sums(self) -> list[_Sum]:
        sums: list[_Sum] = []
        for line in _lines(self.sums):
            try:
                step, checksum = line.decode("ascii").split(" ")
                sums.append(_Sum(int(step), int(checksum, 16)))
            except ValueError:
                raise UserError(f"{self.sums} is damaged; start the run again without resume") from None
        return sums

    def _parse(self, line: bytes, number: int) -> dict[str, float]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if (
            isinstance(row, dict)
            and type(row.get("step")) is int
            and all(type(x) in (int, float) for x in row.values())
        ):
            return row
        raise self._damaged(number, "it is no row with a step and numbers")

    def _damaged(self, number: int, reason: str) -> UserError:
        return UserError(f"{self.path} line {number} is damaged: {reason}; start the run again without resume")


def _format_sum(step: int, line: bytes) -> bytes:
    return f"{step} {zlib.crc32(line):08x}\n".encode()


def _lines(path: Path) -> list[bytes]:
    """Return the complete lines of a file; what follows the last line break is incomplete."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []
