"""The cache's file of tokens: a safetensors file with `train` and `held_out`, written under another name, then renamed.

The header has a fixed length and is written last, so that tokens can be streamed before their number is known. A file
that was not finished, or was cut, has another length than its header says and is never opened.
"""

import errno
import json
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
from jaxtyping import UInt

from crux.config.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, which refuses to delete an open file by itself
    fcntl = None

HEADER = 4096  # bytes, its own length included
SIDES: tuple[str, str] = ("train", "held_out")
YOUNG = 10.0  # seconds; a temporary of less is never taken for a dead one


def default_cache() -> Path:
    """`$CRUX_CACHE`, or `~/.cache/crux`."""
    return Path(os.environ.get("CRUX_CACHE") or "~/.cache/crux").expanduser()


def dtype_for(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every id."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class TokenWriter:
    """Takes tokens of either side, in memory for no longer than the call; `finish` joins them into one file."""

    def __init__(self, file: BinaryIO, held_out: IO[bytes], dtype: np.dtype) -> None:
        self._files, self._dtype = {"train": file, "held_out": held_out}, dtype
        self.counts = dict.fromkeys(SIDES, 0)
        file.write(bytes(HEADER))

    def write(self, side: str, ids: np.ndarray) -> None:
        self._files[side].write(ids.astype(self._dtype).tobytes())
        self.counts[side] += len(ids)

    def finish(self, metadata: dict[str, str]) -> None:
        """Appends the held-out tokens, writes the header in front, and makes sure that all is on the disk."""
        file, held_out = self._files.values()
        held_out.seek(0)
        shutil.copyfileobj(held_out, file, 1 << 20)
        header: dict[str, object] = {"__metadata__": metadata}
        end = 0
        for side in SIDES:
            start, end = end, end + self.counts[side] * self._dtype.itemsize
            kind = f"U{8 * self._dtype.itemsize}"
            header[side] = {"dtype": kind, "shape": [self.counts[side]], "data_offsets": [start, end]}
        text = json.dumps(header).encode().ljust(HEADER - 8)
        assert len(text) == HEADER - 8, "the metadata are too long"
        file.seek(0)
        file.write(struct.pack("<Q", len(text)) + text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def new_token_file(path: Path, *, dtype: np.dtype) -> Iterator[TokenWriter]:
    """A writer whose file appears at `path` when the block ends well, and of which nothing stays when it does not.

    Several processes may write the same file at once: each has its own temporary, the last rename stands. Temporaries
    that a killed process left in the folder are removed.

    Raises:
        UserError: where the folder cannot be made or written, or the disk is full.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path.parent)
        with (
            tempfile.TemporaryFile(dir=path.parent) as held_out,
            tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem + ".", suffix=".tmp", delete=False) as file,
        ):
            temporary = Path(file.name)
            with suppress(OSError):  # a file system without locks
                _lock(file)  # while this process lives
            yield TokenWriter(file, held_out, dtype)  # pyright: ignore[reportArgumentType]
            temporary.chmod(0o644)
            if os.name == "posix":
                os.replace(temporary, path)
        if os.name != "posix":  # an open file cannot be renamed
            os.replace(temporary, path)
        temporary = None
    except OSError as e:
        if e.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
            raise UserError(
                f"the disk is full: {path.parent} has no room for the tokens (CRUX_CACHE moves it)"
            ) from None
        raise UserError(f"the cache {path.parent} cannot be written: {e.strerror or e}; CRUX_CACHE moves it") from None
    finally:
        if temporary:
            with suppress(FileNotFoundError):
                temporary.unlink()


def open_token_file(
    path: Path,
) -> tuple[UInt[np.ndarray, "train"], UInt[np.ndarray, "held_out"], dict[str, str]] | None:
    """Both sides, memory-mapped, and the metadata; None where there is no such file or it is not whole.

    Raises:
        UserError: where it cannot be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            head = f.read(HEADER)
        if len(head) < HEADER or struct.unpack("<Q", head[:8])[0] != HEADER - 8:
            return None
        header = json.loads(head[8:])
        entries = [header[side] for side in SIDES]
        if size != HEADER + entries[-1]["data_offsets"][1]:
            return None
        dtype = np.dtype(f"<u{int(entries[0]['dtype'][1:]) // 8}")
        n_train, n_held_out = (e["shape"][0] for e in entries)
        if n_train + n_held_out == 0:
            return np.empty(0, dtype), np.empty(0, dtype), header["__metadata__"]
        both = np.memmap(path, dtype, mode="r", offset=HEADER, shape=(n_train + n_held_out,))
        return both[:n_train], both[n_train:], header["__metadata__"]
    except FileNotFoundError:
        return None
    except OSError as e:
        raise UserError(f"the cache {path} cannot be read: {e.strerror or e}; CRUX_CACHE moves it") from None


def _remove_stale(folder: Path) -> None:
    for path in folder.glob("*.tmp"):
        try:
            if time.time() - path.stat().st_mtime > YOUNG:
                with path.open("rb") as f:
                    _lock(f)  # fails where its writer lives
                path.unlink()
        except OSError:  # in use, or another process was faster
            continue


def _lock(file: IO[bytes]) -> None:
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
