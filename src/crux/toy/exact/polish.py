"""Trained instances taken to the bottom of their basin: L-BFGS on the exact loss, from where training left them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crux.config.progress import track
from crux.toy.exact.lbfgs import minimise
from crux.toy.exact.population import population_loss
from crux.toy.program import Program
from crux.toy.superposition import Weights

ROWS = 4096
"""Instances a batch: as many as share the cost of a call, as few as stay in the cache."""

DROPPED = 0.03
"""‖W_i‖ below which a feature whose output is off is not represented."""


Compute = Callable[[str, Callable[[], Mapping[str, Tensor]]], Mapping[str, Tensor]]
"""(name, compute) → the tensors of a piece of work: computed, or those that an earlier start of the run left."""


def compute_now(name: str, compute: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Compute a piece of work without keeping it."""
    return compute()


class Polished(NamedTuple):
    """The local optima that the instances were near."""

    weights: Weights
    """In float64."""
    loss: Float[Tensor, "stream setting"]
    """Exact, summed over features."""
    converged: Bool[Tensor, "stream setting"]
    """The gradient is within the tolerance."""


def polish(
    program: Program,
    weights: Weights,
    *,
    gradient_tolerance: float,
    max_iterations: int,
    compute: Compute = compute_now,
) -> Polished:
    """Minimise the exact loss of every instance (without weight decay), a batch of instances at a time.

    A dropped feature whose bias training left below 0 gets no gradient, though b_i = E x_i is better: it is put there, and its
    instance polished again.

    Args:
        compute: computes the batches, each by its name.
    """
    shape = program.importance.shape[:2]
    one_a_row = program._replace(  # a stream for every instance, so that the optimiser can leave some out
        seeds=program.seeds.repeat_interleave(shape[1]),
        density=program.density.repeat_interleave(shape[1], 0),
        importance=program.importance.flatten(0, 1)[:, None],
    )
    W, b = weights.W.flatten(0, 1).double(), weights.b.flatten(0, 1).double()
    loss, converged = b.new_zeros(len(b)), torch.zeros(len(b), dtype=torch.bool)

    def minimise_batch(part: Tensor) -> dict[str, Tensor]:
        end = minimise(
            _loss(_rows(one_a_row, part)),
            (W[part], b[part]),
            max_iterations=max_iterations,
            gradient_tolerance=gradient_tolerance,
            history=10,
        )
        return {
            "W": end.parameters[0].clone(),
            "b": end.parameters[1].clone(),
            "loss": end.loss,
            "converged": end.converged,
        }

    def minimise_rows(rows: Tensor, turn: str) -> None:
        parts = rows.split(ROWS) if len(rows) else ()
        for i, part in enumerate(track(parts, "polishing")):
            end = compute(f"{turn}_{i}", partial(minimise_batch, part))
            W[part], b[part], loss[part], converged[part] = (end[key] for key in ("W", "b", "loss", "converged"))

    minimise_rows(torch.arange(len(b)), "first")
    mean = one_a_row.density.double() * (0.0 if program.features.signed else 0.5)
    off = (W.norm(dim=1) < DROPPED) & (b <= 0) & (mean > 0)
    b = torch.where(off, mean, b)
    minimise_rows(off.any(1).nonzero()[:, 0], "again")
    return Polished(
        Weights(W.unflatten(0, shape), b.unflatten(0, shape), None), loss.view(shape), converged.view(shape)
    )


def _rows(program: Program, rows: Tensor) -> Program:
    """Some of a program's streams."""
    return program._replace(
        seeds=program.seeds[rows], density=program.density[rows], importance=program.importance[rows]
    )


def _loss(program: Program):
    def loss(parameters: tuple[Tensor, ...], which: Tensor) -> Tensor:
        W, b = parameters
        return population_loss(_rows(program, which), Weights(W[:, None], b[:, None], None))[:, 0]

    return loss
