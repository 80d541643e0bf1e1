"""Create the folder of a new run, so that no other process can use the same one and a kill leaves no incomplete folder."""

import itertools
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

from crux.runs.lock import FolderLock, LockedError, lock_folder
from crux.runs.run_folder import RunFolder


@contextmanager
def create_new_run(outputs: Path, name: str, config: Mapping[str, Any]) -> Iterator[RunFolder]:
    """Yield a new run folder `<outputs>/runs/<time>_<name>`, with a number if another run has started within the same second.

    The folder is locked during the block. It is made under a hidden name and renamed with its files, which fails if the name is taken.
    """
    place = outputs / "runs"
    place.mkdir(parents=True, exist_ok=True)
    with ExitStack() as ends:
        lock = _make_hidden_folder(place, ends)
        hidden = lock.folder
        try:
            RunFolder.create(hidden, config)
            _give_name(lock, place / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{name}")
        finally:
            shutil.rmtree(hidden, ignore_errors=True)  # nothing if it has its name
        yield RunFolder(lock.folder)


def _give_name(lock: FolderLock, path: Path) -> None:
    """Rename a locked folder to `path`, or to that with the first number that no other folder has."""
    for number in itertools.count(1):
        free = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            lock.rename(free)
        except OSError:  # a folder with files cannot be replaced
            if not free.exists():
                raise
        else:
            return


def _make_hidden_folder(place: Path, ends: ExitStack) -> FolderLock:
    """Make an empty folder and lock it; another start may remove it before it is locked."""
    while True:
        hidden = place / f".{token_hex(8)}.new"
        hidden.mkdir()
        with suppress(FileNotFoundError, LockedError):
            return ends.enter_context(lock_folder(hidden, what="a new run"))
