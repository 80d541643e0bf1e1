"""The token file of the cache: a safetensors file with `train` and `held_out`, written under a temporary name, then renamed.

The header has a fixed length and is written last, so that tokens can be streamed before their number is known. An
unfinished or truncated file does not have the length that its header states and is never opened.
"""

import errno
import json
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
from jaxtyping import UInt

from crux.config.errors import UserError

try:
    import fcntl
except ImportError:  # on Windows an open file cannot be deleted anyway
    fcntl = None

HEADER_BYTES = 1 << 18  # including the first eight, which state the length of the others
SIDES: tuple[str, str] = ("train", "held_out")
"""The two sides of the split: the tensors of the file, in its order."""
STALE_SECONDS = 1.0  # younger temporary files are never removed; their writers may not have locked them yet


def default_cache() -> Path:
    """Return the cache folder: `$CRUX_CACHE`, or `~/.cache/crux`."""
    return Path(os.environ.get("CRUX_CACHE") or "~/.cache/crux").expanduser()


def token_dtype(vocab_size: int) -> np.dtype:
    """Return uint16 if it can hold every id of the vocabulary, else uint32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class TokenWriter:
    """Streams tokens of both sides, `train` and `held_out`, to disk; `finish` joins them into one file."""

    def __init__(self, file: BinaryIO, held_out: IO[bytes], dtype: np.dtype, stack: ExitStack) -> None:
        self._files, self.dtype, self._stack = {"train": file, "held_out": held_out}, dtype, stack
        self.counts = dict.fromkeys(SIDES, 0)
        file.write(bytes(HEADER_BYTES))

    def open_spool(self) -> IO[bytes]:
        """Open a temporary file for tokens that may be written later; it disappears with the writer."""
        return self._stack.enter_context(tempfile.TemporaryFile(dir=Path(self._files["train"].name).parent))

    def write(self, side: str, ids: np.ndarray) -> None:
        """Append token ids to one side."""
        self._files[side].write(ids.astype(self.dtype).tobytes())
        self.counts[side] += len(ids)

    def finish(self, metadata: dict[str, str]) -> None:
        """Append the held-out tokens, write the header at the start, and flush everything to disk."""
        file, held_out = self._files.values()
        held_out.seek(0)
        shutil.copyfileobj(held_out, file, 1 << 20)
        header: dict[str, object] = {"__metadata__": metadata}
        end = 0
        for side in SIDES:
            start, end = end, end + self.counts[side] * self.dtype.itemsize
            type_name = f"U{8 * self.dtype.itemsize}"
            header[side] = {"dtype": type_name, "shape": [self.counts[side]], "data_offsets": [start, end]}
        text = json.dumps(header).encode().ljust(HEADER_BYTES - 8)
        assert len(text) == HEADER_BYTES - 8, "the metadata is too long"
        file.seek(0)
        file.write(struct.pack("<Q", len(text)) + text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def write_token_file(path: Path, *, dtype: np.dtype) -> Iterator[TokenWriter]:
    """Open a writer. Its file appears at `path` if the `with` block succeeds; otherwise nothing remains.

    Several processes may write the same file at once: each has a separate temporary file, and the last rename wins.
    Temporary files of killed processes in the folder are removed.

    Raises:
        UserError: if the folder cannot be created or written, or the disk is full.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path.parent)
        with (
            ExitStack() as stack,
            tempfile.TemporaryFile(dir=path.parent) as held_out,
            tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem + ".", suffix=".tmp", delete=False) as file,
        ):
            temporary = Path(file.name)
            with suppress(OSError):  # the file system may not support locks
                _lock(file)  # held as long as this process lives
            yield TokenWriter(file, held_out, dtype, stack)  # pyright: ignore[reportArgumentType]
            temporary.chmod(0o644)
            if os.name == "posix":
                os.replace(temporary, path)
        if os.name != "posix":  # an open file cannot be renamed
            os.replace(temporary, path)
        temporary = None
    except OSError as e:
        if e.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
            raise UserError(
                f"the disk is full: {path.parent} has no room for the tokens (set CRUX_CACHE to use another folder)"
            ) from None
        raise UserError(
            f"the cache {path.parent} cannot be written: {e.strerror or e}; set CRUX_CACHE to use another folder"
        ) from None
    finally:
        if temporary:
            with suppress(FileNotFoundError):
                temporary.unlink()


def open_token_file(
    path: Path,
) -> tuple[UInt[np.ndarray, "train"], UInt[np.ndarray, "held_out"], dict[str, str]] | None:
    """Open both sides, memory-mapped, and the metadata; return None if the file is missing or incomplete.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            head = f.read(HEADER_BYTES)
        if len(head) < HEADER_BYTES or struct.unpack("<Q", head[:8])[0] != HEADER_BYTES - 8:
            return None
        header = json.loads(head[8:])
        entries = [header[side] for side in SIDES]
        if size != HEADER_BYTES + entries[-1]["data_offsets"][1]:
            return None
        dtype = np.dtype(f"<u{int(entries[0]['dtype'][1:]) // 8}")
        n_train, n_held_out = (e["shape"][0] for e in entries)
        if n_train + n_held_out == 0:
            return np.empty(0, dtype), np.empty(0, dtype), header["__metadata__"]
        both = np.memmap(path, dtype, mode="r", offset=HEADER_BYTES, shape=(n_train + n_held_out,))
        return both[:n_train], both[n_train:], header["__metadata__"]
    except FileNotFoundError:
        return None
    except OSError as e:
        raise UserError(
            f"the cache {path} cannot be read: {e.strerror or e}; set CRUX_CACHE to use another folder"
        ) from None


def _remove_stale(folder: Path) -> None:
    """Remove the temporary files of writers that no longer run."""
    for path in folder.glob("*.tmp"):
        try:
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                with path.open("rb") as f:
                    _lock(f)  # fails while its writer lives
                path.unlink()
        except OSError:  # in use, or already removed by another process
            continue


def _lock(file: IO[bytes]) -> None:
    """Lock a file until it is closed; raise OSError if another process has locked it."""
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
