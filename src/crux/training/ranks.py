"""What the processes of a run over several devices tell each other, so that all of them hold the same state.

Each process, a rank, sees its share of every batch: equally many tokens, so that the mean over ranks of a mean over tokens is the
mean over the batch. In one process every function here hands on what it is given. Nothing waits for the device.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn


def n_ranks() -> int:
    """How many processes train together; 1 outside of training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if n_ranks() > 1 else 0


def share(n: int) -> slice:
    """This rank's part of n things, in order; n is a multiple of the number of ranks."""
    assert n % n_ranks() == 0, f"{n} cannot be shared by {n_ranks()} ranks"
    each = n // n_ranks()
    return slice(rank() * each, (rank() + 1) * each)


def mean(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The mean over ranks; no gradient passes it."""
    if n_ranks() == 1:
        return value
    total = value.detach() / n_ranks()
    dist.all_reduce(total)
    return total


def mean_row(row: Mapping[str, Sequence[Float[Tensor, ""]]]) -> Mapping[str, Sequence[Float[Tensor, ""]]]:
    """Of every number of a row the mean over ranks, in one exchange."""
    if n_ranks() == 1:
        return row
    means = iter(mean(torch.stack([v.detach().float() for values in row.values() for v in values])).unbind())
    return {name: [next(means) for _ in values] for name, values in row.items()}


@torch.no_grad()
def mean_buffers(module: nn.Module, names: Sequence[str]) -> None:
    """Replaces buffers by their means over ranks."""
    for name in names if n_ranks() > 1 else ():
        buffer = module.get_buffer(name)
        buffer.copy_(mean(buffer))


def anywhere(flags: Bool[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """True where it is true on any rank."""
    if n_ranks() == 1:
        return flags
    found = flags.to(torch.uint8)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.bool()


def from_all(value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "ranks *shape"]:
    """Every rank's value, by rank."""
    if n_ranks() == 1:
        return value[None]
    found = value.new_empty((n_ranks(), *value.shape))
    dist.all_gather(list(found.unbind()), value.contiguous())
    return found
