"""Exchange values between the processes (ranks) of a run over several devices, so that all of them have the same state.

Each rank sees an equal share of the tokens of every batch. So the mean over ranks of a mean over tokens is the mean over the batch.
With a single process nothing is exchanged. No function waits for the device.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn


def n_ranks() -> int:
    """Return the number of processes that train together; 1 outside of training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def current_rank() -> int:
    """Return the index of this process, from 0."""
    return dist.get_rank() if n_ranks() > 1 else 0


def rank_slice(n: int) -> slice:
    """Return this rank's part of n items, in order; n must be a multiple of the number of ranks."""
    assert n % n_ranks() == 0, f"{n} cannot be shared by {n_ranks()} ranks"
    size = n // n_ranks()
    return slice(current_rank() * size, (current_rank() + 1) * size)


def mean_over_ranks(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the mean over ranks. With several ranks no gradient flows through it; with one, it is `value` itself."""
    if n_ranks() == 1:
        return value
    total = value.detach() / n_ranks()
    dist.all_reduce(total)
    return total


def mean_row(row: Mapping[str, Sequence[Float[Tensor, ""]]]) -> Mapping[str, Sequence[Float[Tensor, ""]]]:
    """Return the mean over ranks of every value in a row of the training history, in a single exchange.

    Args:
        row: the values of each term, one per run or per SAE.
    """
    if n_ranks() == 1:
        return row
    means = iter(mean_over_ranks(torch.stack([v.detach().float() for values in row.values() for v in values])).unbind())
    return {name: [next(means) for _ in values] for name, values in row.items()}


@torch.no_grad()
def mean_buffers(module: nn.Module, names: Sequence[str]) -> None:
    """Replace buffers by their means over ranks."""
    for name in names if n_ranks() > 1 else ():
        buffer = module.get_buffer(name)
        buffer.copy_(mean_over_ranks(buffer))


def any_rank(flags: Bool[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Return for each flag whether it is true on any rank."""
    if n_ranks() == 1:
        return flags
    highest = flags.to(torch.uint8)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    return highest.bool()


def gather(value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "ranks *shape"]:
    """Return the values of all ranks, in the order of the ranks."""
    if n_ranks() == 1:
        return value[None]
    values = value.new_empty((n_ranks(), *value.shape))
    dist.all_gather(list(values.unbind()), value.contiguous())
    return values
