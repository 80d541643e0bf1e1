"""Results of a piece of work as the tensors that a run folder keeps, and back, bit for bit and in the same memory layout."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

Once = Callable[[str, Callable[[], Mapping[str, Tensor]]], Mapping[str, Tensor]]
"""Takes the name of a piece of work and what computes it; returns its tensors, which an earlier start of the run may have computed."""

TRANSPOSED = ".T"
"""Ends the name of a matrix that is kept transposed: how it lies in memory decides how products with it are rounded."""


def pack(values: Mapping[str, object], *, prefix: str) -> dict[str, Tensor]:
    """Return tensors and numbers as tensors whose names begin with the prefix; text is left out."""
    packed: dict[str, Tensor] = {}
    for name, value in values.items():
        match value:
            case Tensor() if value.dim() == 2 and value.T.is_contiguous() and not value.is_contiguous():
                packed[prefix + name + TRANSPOSED] = value.T.clone()
            case Tensor():
                packed[prefix + name] = value.clone()
            case int() | float():
                packed[prefix + name] = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
            case _:
                assert isinstance(value, str), f"{name} cannot be kept"
    return packed


def unpack(
    make: Callable[..., T], tensors: Mapping[str, Tensor], *, prefix: str, device: torch.device, **more: object
) -> T:
    """Make what `pack` was given, from those tensors whose names begin with the prefix.

    Args:
        more: the arguments that are no tensors or numbers.
    """
    values: dict[str, object] = {}
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            name, value = key.removeprefix(prefix), tensor.to(device)
            if name.endswith(TRANSPOSED):
                name, value = name.removesuffix(TRANSPOSED), value.T
            values[name] = value if value.dim() else value.item()
    return make(**values, **more)
