"""Reading safetensors files that somebody else wrote: whatever is wrong with a file is one line that names it.

The header of a file says the names, shapes and types of its tensors. It is read without torch and before memory is allocated.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from safetensors import SafetensorError, safe_open

from crux.config.errors import UserError
from crux.config.json_files import check_file

if TYPE_CHECKING:
    from torch import Tensor

REAL_DTYPES = ("F64", "F32", "F16", "BF16")
"""Types of floating-point numbers in a safetensors header. Those of 8 bits and less are quantised weights, which need scales."""


class TensorHeader(NamedTuple):
    """The entry of one tensor in a file's header."""

    shape: tuple[int, ...]
    dtype: str
    """Type of the numbers, such as `F32`."""

    @property
    def is_real(self) -> bool:
        """True if the tensor has real floating-point numbers."""
        return self.dtype in REAL_DTYPES


def read_tensor_header(path: Path) -> dict[str, TensorHeader]:
    """Read the names, shapes and types of the tensors in a safetensors file.

    Raises:
        UserError: if there is no such file, it cannot be read, or it is not a safetensors file, or a truncated one.
    """
    check_file(path)
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is not a dict
            return {name: TensorHeader(tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise _broken_file(path, error) from error


def load_tensors(path: Path) -> "dict[str, Tensor]":
    """Load all tensors of a safetensors file; raise UserError as `read_tensor_header` does."""
    from safetensors.torch import load_file  # imports torch

    check_file(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError) as error:  # KeyError: a type that torch does not have
        raise _broken_file(path, error) from error


def check_finite(tensors: "Mapping[str, Tensor]", *, path: Path) -> None:
    """Raise a UserError that names the tensor and the file if a number is NaN or infinite."""
    for name, tensor in tensors.items():
        if not (finite := tensor.isfinite()).all():
            first = (~finite).nonzero()[0].tolist()
            value, count = tensor[tuple(first)].item(), int((~finite).sum())
            more = f" and {count - 1:,} more" if count > 1 else ""
            raise UserError(f"{path}: {name}{first} is {value}{more}; weights must be finite")


def _broken_file(path: Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"{path}: not a safetensors file, or a broken one ({reason})")
