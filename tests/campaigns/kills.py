"""Kill a process at its n-th file operation, so that every moment between two operations can be tried."""

import mmap
import os
import signal
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EVENTS = ("os.rename", "os.mkdir", "os.remove", "os.link", "os.truncate", "shutil.rmtree", "sqlite3.connect")
"""Python's audit events of operations that change files, besides opening a file for writing."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class FileOperations:
    """Counts the operations on files below some folders in a fork, and sends it a signal before the n-th one.

    Operations are: opening for writing, renaming, creating and removing files and folders, fsync, and commits of a database.

    Args:
        folders: operations elsewhere are not counted.
        at: number of the operation, from 1, before which the signal is sent; None: only count.
        number: the signal.
    """

    def __init__(self, folders: Sequence[Path], *, at: int | None, number: signal.Signals) -> None:
        self.folders, self.at, self.number = tuple(f"{folder}/" for folder in folders), at, number
        self._shared = mmap.mmap(-1, 8)  # shared with the fork

    @property
    def count(self) -> int:
        """The number of operations so far."""
        return struct.unpack("q", self._shared[:8])[0]

    def install(self) -> None:
        """Begin to count in this process. The hook cannot be removed, so that this is for forks only."""
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        sys.addaudithook(self._on_event)
        fsync = os.fsync

        def counted_fsync(descriptor: int) -> None:
            self._add()
            fsync(descriptor)

        os.fsync = counted_fsync
        event.listen(Engine, "commit", lambda connection: self._add())

    def _on_event(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING and self._is_below(path):
                self._add()
        elif name in EVENTS and any(self._is_below(path) for path in arguments[:2]):
            self._add()

    def _is_below(self, path: object) -> bool:
        return isinstance(path, str | os.PathLike) and str(path).startswith(self.folders)

    def _add(self) -> None:
        count = self.count + 1
        self._shared[:8] = struct.pack("q", count)
        if count == self.at:
            os.kill(os.getpid(), self.number)
