"""Convert results to tensors for the run folder and back, bit for bit and with the same memory layout."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

ComputeOnce = Callable[[str, Callable[[], Mapping[str, Tensor]]], Mapping[str, Tensor]]
"""(name, compute) → tensors: calls `compute`, unless an earlier start of the run already saved the tensors under this name."""

TRANSPOSED = ".T"
"""Suffix of a matrix that is stored transposed, because the memory layout affects how products with it are rounded."""


def pack(values: Mapping[str, object], *, prefix: str) -> dict[str, Tensor]:
    """Return the tensors and numbers as tensors named prefix + name. Strings are left out."""
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
                assert isinstance(value, str), f"{name} cannot be stored"
    return packed


def unpack(
    build: Callable[..., T], tensors: Mapping[str, Tensor], *, prefix: str, device: torch.device, **more: object
) -> T:
    """Return `build(...)` with the values that `pack` stored under the prefix.

    Args:
        more: further keyword arguments, such as the strings that `pack` left out.
    """
    values: dict[str, object] = {}
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            name, value = key.removeprefix(prefix), tensor.to(device)
            if name.endswith(TRANSPOSED):
                name, value = name.removesuffix(TRANSPOSED), value.T
            values[name] = value if value.dim() else value.item()
    return build(**values, **more)
