"""Files of tensors that a resumed run reads again: safetensors with a checksum, so that every changed number is found."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from crux.config.errors import UserError
from crux.config.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

KEY = "sha256"
"""Key of the checksum in the file's metadata. It is that of the same tensors written without metadata."""


class DamagedTensorsError(UserError):
    """A file of tensors is not as it was written."""


def write_checked_tensors(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Write a safetensors file with a checksum.

    Raises:
        UserError: if the disk is full.
    """
    from safetensors.torch import save  # imports torch

    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    content = save(contiguous, {KEY: hashlib.sha256(save(contiguous)).hexdigest()})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def read_checked_tensors(path: Path, *, required: bool) -> "dict[str, Tensor]":
    """Read a safetensors file and compare its content with its checksum.

    Args:
        required: False to accept a file without a checksum, such as one of an earlier version of crux.

    Raises:
        DamagedTensorsError: if the file is incomplete or changed.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save

    try:
        with safe_open(path, framework="pt") as file:
            checksum = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DamagedTensorsError(f"{path} is damaged (it cannot be read)") from error
    if checksum is None and required:
        raise DamagedTensorsError(f"{path} is damaged, or from an earlier version of crux (it has no checksum)")
    if checksum is not None and checksum != hashlib.sha256(save(tensors)).hexdigest():
        raise DamagedTensorsError(f"{path} is damaged (its checksum is wrong)")
    return tensors
