"""Atomic writes of files and folders: everything is written under a temporary name next to the final one, then renamed.

Since both are in one folder, the rename never copies, whatever the file system. A file reaches the disk before it gets its final name,
so that not even a power cut leaves a truncated file under that name.
"""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from crux.config.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

TEMPORARY = re.compile(r"\..+\.[0-9a-f]+\.(new|old)")
"""The names of temporary files and folders."""


@contextmanager
def replacing(path: Path, *, keep_as: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` at the end of the block, and is removed if the block fails.

    Args:
        keep_as: new name of the file that is replaced; None: it is lost.

    Raises:
        UserError: if the disk is full; `path` stays as it was.
    """
    temporary = _next_to(path, "new")
    try:
        with explain_full_disk(path):
            yield temporary
            _flush_to_disk(temporary)
            if keep_as is not None and path.exists():
                path.replace(keep_as)
            temporary.replace(path)
            _flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new, empty folder that replaces `path` at the end of the block; if the block fails, `path` stays as it was.

    Raises:
        UserError: if the disk is full.
    """
    written, replaced = _next_to(path, "new"), _next_to(path, "old")
    try:
        with explain_full_disk(path):
            written.mkdir(parents=True)
            yield written
            for file in sorted(written.rglob("*")):
                _flush_to_disk(file)
            if path.exists():
                path.rename(replaced)
            written.rename(path)
            _flush_to_disk(path.parent)
    finally:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        shutil.rmtree(written, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file."""
    from safetensors.torch import save  # imports torch

    content = save({name: value.contiguous() for name, value in tensors.items()}, dict(metadata or {}) or None)
    with replacing(path) as temporary:  # save_file would not say that the disk is full
        temporary.write_bytes(content)


def remove_temporaries(folder: Path, *, below: bool) -> None:
    """Remove the temporary files and folders that killed processes have left in a folder.

    The caller must hold the lock of the folder, so that no living process is writing there.

    Args:
        below: True to do so in its subfolders too.
    """
    for path in list(folder.rglob(".*") if below else folder.glob(".*")):
        if not TEMPORARY.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turn the error of a full disk into a UserError that names the folder of `path`, in which the block writes."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the disk is full: {path.parent} has no room for {path.name}; what was there before is unchanged"
        ) from error


def _next_to(path: Path, ending: str) -> Path:
    # random, since processes on several machines may write the same file
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{ending}")


def _flush_to_disk(path: Path) -> None:
    """Wait until a file, or the list of the files in a folder, is on the disk."""
    with suppress(OSError) if path.is_dir() else nullcontext():  # some file systems cannot do this for a folder
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
