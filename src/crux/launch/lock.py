"""The lock of a sweep's folder, which allows one launching process at a time."""

import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crux.config.errors import UserError


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder during the block; the kernel releases it when this process ends, however it ends.

    If the file system has no locks, a warning is printed and the sweep runs unprotected against a second launch.

    Raises:
        UserError: if another process holds the lock.
    """
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"sweep {folder.name} is run by {holder}: wait for it, or stop it; {folder}") from None
        except OSError as error:
            print(
                f"crux: {folder} cannot be locked ({error.strerror}): do not start this sweep twice at the same time",
                file=sys.stderr,
            )
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
            file.flush()
        yield
