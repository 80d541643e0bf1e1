"""Atomic writes of files and folders: everything is written under a temporary name next to the final one, then renamed."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` at the end of the block, and is removed if the block fails."""
    temporary = _next_to(path, "new")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new, empty folder that replaces `path` at the end of the block; if the block fails, `path` stays as it was."""
    written, replaced = _next_to(path, "new"), _next_to(path, "old")
    written.mkdir(parents=True)
    try:
        yield written
        if path.exists():
            path.rename(replaced)
        written.rename(path)
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
    from safetensors.torch import save_file  # imports torch

    with replacing(path) as temporary:
        save_file(
            {name: value.contiguous() for name, value in tensors.items()}, temporary, dict(metadata or {}) or None
        )


def _next_to(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{ending}")
