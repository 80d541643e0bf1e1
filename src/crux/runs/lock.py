"""The lock of a folder, which allows one process at a time to write there: a run in its folder, the launching process in a sweep's folder.

The kernel releases the lock when its holder ends, however it ends. On NFS, locks hold between machines only if the file system was
mounted with them (NFS 4, or `lockd`; not `nolock`).
"""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from crux.config.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".lock"
"""Name of the locked file; it holds a description of the process that holds the lock."""


class LockedError(UserError):
    """Another process holds the lock of a folder."""


class FolderLock:
    """A lock that is being held."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rename(self, path: Path) -> None:
        """Rename the folder, which stays locked."""
        self.folder.rename(path)
        self.folder = path


@contextmanager
def lock_folder(folder: Path, *, what: str) -> Iterator[FolderLock]:
    """Hold the lock of a folder during the block.

    If the file system has no locks, a warning is printed and the folder is used unprotected against a second process.

    Args:
        what: what is being run in the folder, for messages.

    Raises:
        LockedError: if another process holds the lock.
    """
    lock, file = FolderLock(folder), _open_locked(folder / NAME, what=what)
    try:
        yield lock
    finally:
        (lock.folder / NAME).unlink(missing_ok=True)  # while it is locked, so that it is not another process's
        file.close()


def _open_locked(path: Path, *, what: str) -> IO[str]:
    while True:
        file = path.open("a+", encoding="utf-8", errors="replace")
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise LockedError(f"{what} is run by {holder}: wait for it, or stop it; {path.parent}") from None
        except OSError as error:
            print(
                f"crux: {path.parent} cannot be locked ({error.strerror}): do not start {what} twice at the same time",
                file=sys.stderr,
            )
            return file
        if _is_open_file(file, path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
            file.flush()
            return file
        file.close()  # its last holder has just removed it


def _is_open_file(file: IO[str], path: Path) -> bool:
    """Return true if a path still leads to the file that was opened there."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
