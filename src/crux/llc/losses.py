"""Losses of all chains at once: their data, values and gradients.

A `ChainLoss` takes parameters with a first axis `row` (all chains of all cases) and a batch. The batch's first axis is also `row`,
or has length 1 if all chains share it. The loss returns `[row]` or `[row, sample]`. `map_over_chains` makes a `ChainLoss` from the
loss of a single network.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.llc.coordinates import Coordinates
from crux.llc.noise import draw_minibatch_indices

Batch = Any
"""A tensor, a tuple of batches, or None if the loss needs no data."""
ChainLoss = Callable[[dict[str, Tensor], Batch], Tensor]


def map_tensors(function: Callable[[Tensor], Any], batch: Batch) -> Batch:
    """Apply a function to every tensor of a batch."""
    if isinstance(batch, tuple):
        return tuple(map_tensors(function, part) for part in batch)
    return None if batch is None else function(batch)


def tensor_lengths(batch: Batch) -> list[int]:
    """Return the lengths of all tensors of a batch."""
    lengths: list[int] = []
    map_tensors(lambda tensor: lengths.append(len(tensor)), batch)
    return lengths


class FixedData(NamedTuple):
    """The same samples in every step and for every chain, as tensors [sample, ...]."""

    batch: Batch

    def get_batch(self, step: int, rows: Sequence[tuple[int, int]]) -> Batch:
        """Return the batch with a first axis of length 1, whatever the step and the chains."""
        return map_tensors(lambda x: x[None], self.batch)


class Minibatches(NamedTuple):
    """New samples in every step and for each chain; chains with shared samples would share their errors."""

    samples: Batch
    """Tensors [sample, ...] to draw from."""
    size: int
    """Samples per minibatch."""

    def get_batch(self, step: int, rows: Sequence[tuple[int, int]]) -> Batch:
        """Draw the batch [row, size, ...] of a step; `rows` has the seed of the case and the index of the chain, for each row."""
        n = tensor_lengths(self.samples)[0]
        chosen = draw_minibatch_indices(rows, step=step, size=self.size, n_samples=n)
        return map_tensors(lambda x: x[chosen.to(x.device)], self.samples)


NO_DATA = FixedData(None)
"""Stands for the data of a loss that needs none, because it is a population mean in closed form."""


def map_over_chains(single: Callable[[dict[str, Tensor], Batch], Tensor]) -> ChainLoss:
    """Make a loss of all chains from the loss of a single network, `single(params, batch) → [sample]` or a scalar, by `vmap`."""

    def loss(params: dict[str, Tensor], batch: Batch) -> Tensor:
        rows = len(next(iter(params.values())))
        per_row = [n == rows for n in tensor_lengths(batch)]  # empty if the loss needs no data
        if all(per_row):
            return torch.vmap(single, in_dims=(0, 0 if per_row else None))(params, batch)
        return torch.vmap(single, in_dims=(0, None))(params, map_tensors(lambda x: x[0], batch))

    return loss


def compute_loss(
    loss: ChainLoss, coordinates: Coordinates, w: Float[Tensor, "row n"], batch: Batch
) -> Float[Tensor, "row"]:
    """Compute L of every row, the mean over samples."""
    losses = loss(coordinates.to_parameters(w), batch)
    assert losses.shape[0] == len(w), f"a loss of shape {tuple(losses.shape)} for {len(w)} rows"
    return losses if losses.ndim == 1 else losses.flatten(1).mean(1)


def compute_loss_and_gradient(
    loss: ChainLoss, coordinates: Coordinates, w: Float[Tensor, "row n"], batch: Batch
) -> tuple[Float[Tensor, "row"], Float[Tensor, "row n"]]:
    """Compute L and ∇L of every row. Rows are independent, so that the gradient of their sum contains all gradients."""
    with torch.enable_grad():
        w = w.detach().requires_grad_()
        losses = compute_loss(loss, coordinates, w, batch)
        (gradient,) = torch.autograd.grad(losses.sum(), w)
    return losses.detach(), gradient
