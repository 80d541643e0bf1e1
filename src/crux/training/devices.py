"""Choose the device on which a job computes, and the precision in which it trains."""

from typing import NamedTuple

import torch

from crux.config.errors import UserError
from crux.config.schema import Accelerator, Precision


class Hardware(NamedTuple):
    """The hardware of a training run, in Lightning's terms."""

    accelerator: str
    """`cpu` or `cuda`."""
    devices: int
    """Number of devices; each has a process of its own, and all share each batch."""
    precision: str
    """`32-true` or `bf16-mixed`."""


CPU = Hardware("cpu", 1, "32-true")


def choose_device(accelerator: Accelerator) -> torch.device:
    """Return the torch device for `auto`, `cpu` or `cuda`.

    Raises:
        UserError: if CUDA is asked for and torch sees no GPU.
    """
    available = torch.cuda.is_available()
    if accelerator is Accelerator.cuda and not available:
        raise UserError("trainer.accelerator=cuda: torch sees no CUDA device here; use trainer.accelerator=cpu")
    return torch.device("cuda" if available and accelerator is not Accelerator.cpu else "cpu")


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype of the subject and of autocast operations in training; `auto` is float32 on the CPU and bfloat16 on CUDA."""
    match precision:
        case Precision.auto:
            return torch.bfloat16 if device.type == "cuda" else torch.float32
        case Precision.bfloat16:
            return torch.bfloat16
        case Precision.float32:
            return torch.float32


def choose_hardware(accelerator: Accelerator, *, precision: Precision, devices: int) -> Hardware:
    """Return the hardware for a training run on this number of devices."""
    device = choose_device(accelerator)
    mixed = choose_dtype(precision, device) is torch.bfloat16
    return Hardware(device.type, devices, "bf16-mixed" if mixed else "32-true")
