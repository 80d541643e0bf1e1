"""The outbox on disk: one file per run that MLflow does not show completely, locked by the process that sends the run."""

import fcntl
import json
import os
import threading
from dataclasses import asdict
from pathlib import Path

from crux.config.files import write_text
from crux.runs.record import RunRecord, read_run_id


class Entry:
    """A record with its file in the outbox, which this process has locked. The kernel releases the lock when the process ends."""

    def __init__(self, path: Path, record: RunRecord, *, lock: int | None) -> None:
        self.path, self.record, self._lock = path, record, lock
        self._writing = threading.Lock()

    @classmethod
    def create(cls, path: Path, record: RunRecord) -> "Entry | None":
        """Lock a run's place in the outbox and write the record; None if another process is sending an earlier record of the run.

        If there is an earlier record, its MLflow run is continued if it is of the same run; otherwise it only has to end.
        """
        try:
            lock = _lock(path)
        except BlockingIOError:
            return None
        except OSError:  # the file system has no locks
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = None
        # another process, or this one, may have sent the record of an earlier start since the job has looked for its id
        record.earlier_id = read_run_id(Path(record.folder)) or record.earlier_id
        earlier = RunRecord.read(path)
        if earlier is not None and earlier.describes_same_run(record):
            record.key, record.run_id, record.started = earlier.key, earlier.run_id, earlier.started
            record.earlier_id = record.earlier_id or earlier.earlier_id
        elif earlier is not None:
            earlier.superseded = True
            earlier.state = "KILLED" if earlier.state == "RUNNING" else earlier.state
            write_text(path.with_name(f"{path.stem}-{earlier.key}.json"), json.dumps(asdict(earlier), indent=1))
            record.earlier_id = None
        entry = cls(path, record, lock=lock)
        entry.save()
        return entry

    @classmethod
    def claim(cls, path: Path) -> "Entry | None":
        """Lock a record that an earlier process has left; None if its process is still running, or there is no record."""
        try:
            lock = _lock(path)
        except OSError:  # in use, or the file system has no locks
            return None
        if (record := RunRecord.read(path)) is None:
            path.unlink(missing_ok=True)
            _unlock(path, lock)
            return None
        return cls(path, record, lock=lock)

    def save(self) -> None:
        """Write the record to its file."""
        with self._writing:
            write_text(self.path, json.dumps(asdict(self.record), indent=1))

    def remove(self) -> None:
        """Remove the file, since MLflow shows everything."""
        with self._writing:
            self.path.unlink(missing_ok=True)
            self.release()

    def release(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            _unlock(self.path, self._lock)
            self._lock = None


def _lock(path: Path) -> int:
    """Lock `<path>.lock` and return its file descriptor.

    Raises:
        BlockingIOError: if another process holds the lock.
        OSError: if the file system has no locks.
    """
    place = path.with_suffix(".lock")
    while True:
        try:
            descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # its last holder has removed the folder
            place.parent.mkdir(parents=True, exist_ok=True)
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == os.stat(place).st_ino:
                return descriptor
        except FileNotFoundError:  # its last holder has removed the file
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _unlock(path: Path, descriptor: int) -> None:
    """Remove the file of a lock that is held, release the lock, and remove the outbox if it is empty."""
    path.with_suffix(".lock").unlink(missing_ok=True)
    os.close(descriptor)
    try:
        path.parent.rmdir()
    except OSError:  # other runs are not sent yet
        return
