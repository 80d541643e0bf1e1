"""A job that cannot fit into this machine's memory is rejected before it starts, by a rough lower estimate. Torch-free.

Only what certainly exists at the same time is counted: weights with their gradients and Adam's two moments (16 bytes per weight in
float32), and the largest tensors of a step. The rest (the framework, the text, fragmentation) is not, so a job close to the limit may
still run out of memory; that ends in one line too (`explain_user_error`). A job that works is never rejected.
"""

import shutil
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from crux.config.errors import UserError
from crux.config.schema import Accelerator

BYTES_PER_WEIGHT = 16
"""Bytes of a trained weight: itself, its gradient, and Adam's two moments, each in float32."""
SURELY_FITS = 2 * 2**30
"""Bytes below which the machine is not asked for its memory."""


class Need(NamedTuple):
    """Something that a job keeps in memory."""

    what: str
    """Its description, such as `the SAE's weights and Adam's moments`."""
    n_bytes: float
    keys: tuple[str, ...]
    """The keys that it grows with, the most effective first."""


def check_memory(needs: Sequence[Need], *, accelerator: Accelerator, given: Collection[str]) -> None:
    """Check that everything that a job keeps in memory at once fits into it.

    Args:
        given: the keys on the command line, of which the message names one if it matters.

    Raises:
        UserError: if not, with the size of the largest part and the keys to lower.
    """
    total = sum(need.n_bytes for need in needs)
    if total <= SURELY_FITS:
        return
    available, device = device_memory(accelerator)
    if total <= available:
        return
    largest = max(needs, key=lambda need: need.n_bytes)
    keys = dict.fromkeys([*[key for key in largest.keys if key in given], *largest.keys])
    others = [key for need in needs for key in need.keys if key in given and need.n_bytes > total / 100]
    named = next(iter([*[key for key in keys if key in given], *others, *keys]))
    lower = " or ".join(dict.fromkeys([named, *keys]))
    raise UserError(
        f"{named}: the job needs about {_format_gigabytes(total)}, mostly for {largest.what}, and {device} has "
        f"{_format_gigabytes(available)}; lower {lower}"
    )


def device_memory(accelerator: Accelerator) -> tuple[int, str]:
    """Return the bytes of memory of the device that a job computes on, and the name of that device in messages."""
    if accelerator is not Accelerator.cpu and (n_bytes := _gpu_memory()):
        return n_bytes, "the GPU"
    return machine_memory(), "this machine"


def machine_memory() -> int:
    """Return the bytes of main memory that this process may use: those of the machine, or of its control group if they are fewer."""
    limits = [psutil.virtual_memory().total + psutil.swap_memory().total]
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if path.is_file() and (text := path.read_text("ascii").strip()).isdigit():
            limits.append(int(text))
    return min(limits)


def _gpu_memory() -> int:
    """Return the bytes of memory of the largest GPU, from nvidia-smi; 0 if there is none."""
    if (smi := shutil.which("nvidia-smi")) is None:
        return 0
    query = [smi, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return max((int(line) * 2**20 for line in listed.split() if line.isdigit()), default=0)


def _format_gigabytes(n_bytes: float) -> str:
    gigabytes = n_bytes / 2**30
    return f"{gigabytes:,.0f} GB" if gigabytes >= 10 else f"{gigabytes:.1f} GB"
