"""From a loss and its data to L and ∇L of every chain at once.

A loss takes parameters with a first axis `row` (all chains of all cases) and a batch, whose first axis is `row` too or has
length 1 where all chains share it, and gives `[row]` or `[row, sample]`. A loss of one network becomes one by `over_chains`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.llc.coordinates import Coordinates
from crux.llc.noise import places

Batch = Any
"""A tensor, a tuple of batches, or None if the loss needs no data."""
Loss = Callable[[dict[str, Tensor], Batch], Tensor]


def map_tensors(function: Callable[[Tensor], Any], batch: Batch) -> Batch:
    """Return the batch with the function's value in place of every tensor."""
    if isinstance(batch, tuple):
        return tuple(map_tensors(function, part) for part in batch)
    return None if batch is None else function(batch)


def lengths(batch: Batch) -> list[int]:
    """Return the length of every tensor of the batch."""
    found: list[int] = []
    map_tensors(lambda tensor: found.append(len(tensor)), batch)
    return found


class Fixed(NamedTuple):
    """The same samples in every step, for every chain: all data, or a subset of them. Tensors [sample, ...]."""

    batch: Batch

    def at(self, step: int, rows: Sequence[tuple[int, int]]) -> Batch:
        """The batch with a first axis of length 1."""
        return map_tensors(lambda x: x[None], self.batch)


class Minibatches(NamedTuple):
    """Fresh samples in every step, other ones for each chain: chains that shared them would share their errors."""

    samples: Batch
    """Tensors [sample, ...], to draw from."""
    size: int

    def at(self, step: int, rows: Sequence[tuple[int, int]]) -> Batch:
        """The batch [row, size, ...] of a step; rows are (seed, chain)."""
        n = lengths(self.samples)[0]
        chosen = places(rows, step=step, size=self.size, of=n)
        return map_tensors(lambda x: x[chosen.to(x.device)], self.samples)


NO_DATA = Fixed(None)
"""For losses that are means over a population, in closed form."""


def over_chains(one: Callable[[dict[str, Tensor], Batch], Tensor]) -> Loss:
    """A loss of all chains from the loss of one network: `one(params, batch) → [sample]` (or a scalar), mapped by torch.func."""

    def loss(params: dict[str, Tensor], batch: Batch) -> Tensor:
        rows = len(next(iter(params.values())))
        own = [n == rows for n in lengths(batch)]
        if all(own):
            return torch.vmap(one, in_dims=(0, 0 if own else None))(params, batch)
        return torch.vmap(one, in_dims=(0, None))(params, map_tensors(lambda x: x[0], batch))

    return loss


def value(loss: Loss, coordinates: Coordinates, w: Float[Tensor, "row n"], batch: Batch) -> Float[Tensor, "row"]:
    """L of every row: the mean over samples."""
    found = loss(coordinates.named(w), batch)
    assert found.shape[0] == len(w), f"a loss of shape {tuple(found.shape)} for {len(w)} rows"
    return found if found.ndim == 1 else found.flatten(1).mean(1)


def value_and_gradient(
    loss: Loss, coordinates: Coordinates, w: Float[Tensor, "row n"], batch: Batch
) -> tuple[Float[Tensor, "row"], Float[Tensor, "row n"]]:
    """L and ∇L of every row: no row depends on another's parameters, so the sum's gradient is each one's."""
    with torch.enable_grad():
        w = w.detach().requires_grad_()
        found = value(loss, coordinates, w, batch)
        (gradient,) = torch.autograd.grad(found.sum(), w)
    return found.detach(), gradient
