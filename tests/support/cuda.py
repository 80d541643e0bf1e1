"""The CUDA device of the tests in tests/gpu, the precisions in which they train there, and comparisons with the CPU."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from crux.training.devices import Hardware

DEVICE = torch.device("cuda")
FLOAT32 = Hardware("cuda", 1, "32-true")
BFLOAT16 = Hardware("cuda", 1, "bf16-mixed")

ROUNDING = 1e-4
"""Largest relative difference between a float32 result on CUDA and on the CPU: sums of up to thousands of terms in another order differ
by about 1e-6, products in TF32 by 3e-4 or more."""


def subject_dtype(hardware: Hardware) -> torch.dtype:
    """Return the dtype that the subject has in a training on this hardware."""
    return torch.bfloat16 if hardware is BFLOAT16 else torch.float32


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return ‖actual − expected‖ / ‖expected‖ in float64 on the CPU; the norm itself if `expected` is zero."""
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    return float((actual - expected).norm() / (expected.norm() or 1.0))


def assert_equal_up_to_rounding(actual: Tensor, expected: Tensor, name: str) -> None:
    """Check that a tensor on CUDA equals that of the CPU in shape, dtype and, up to `ROUNDING`, in its values."""
    assert actual.device.type == DEVICE.type, f"{name} is on {actual.device}"
    assert actual.shape == expected.shape, name
    assert actual.dtype == expected.dtype, name
    error = relative_error(actual, expected)
    assert error < ROUNDING, f"{name}: relative error {error:.1e}"  # false for NaN


@contextmanager
def forbid_waits() -> Iterator[None]:
    """Make every operation raise an error that would wait for the device."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Ss]ynchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
