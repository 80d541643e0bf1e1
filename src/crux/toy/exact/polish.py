"""Polish trained instances: minimise the exact loss by L-BFGS, starting from the trained weights."""

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

MAX_BATCH = 4096
"""Largest number of instances per batch: enough to share the overhead of a call, few enough to stay in the cache."""

MAX_DROPPED_NORM = 0.03
"""A feature with ‖W_i‖ below this value, and with b_i ≤ 0, is dropped and its output is 0."""


Compute = Callable[[str, Callable[[], Mapping[str, Tensor]]], Mapping[str, Tensor]]
"""(name, compute) → the tensors of a piece of work: newly computed, or saved by an earlier start of the run."""


def compute_now(name: str, compute: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Compute a piece of work without saving it."""
    return compute()


class PolishedInstances(NamedTuple):
    """The local optima that L-BFGS reached from the trained instances."""

    weights: Weights
    """In float64."""
    loss: Float[Tensor, "stream setting"]
    """Exact, summed over features."""
    converged: Bool[Tensor, "stream setting"]
    """True if the gradient is within the tolerance."""


def polish(
    program: Program,
    weights: Weights,
    *,
    gradient_tolerance: float,
    max_iterations: int,
    compute: Compute = compute_now,
) -> PolishedInstances:
    """Minimise the exact loss of every instance, without weight decay, one batch of instances at a time.

    If training left a dropped feature with a bias below 0, the feature gets no gradient, although b_i = E x_i is better. Such biases
    are set to E x_i, and their instances are polished again.

    Args:
        compute: computes a batch, given its name; may return a saved result instead.
    """
    shape = program.importance.shape[:2]
    single_setting = program._replace(  # one stream per instance, so that the optimiser can drop finished ones
        seeds=program.seeds.repeat_interleave(shape[1]),
        density=program.density.repeat_interleave(shape[1], 0),
        importance=program.importance.flatten(0, 1)[:, None],
    )
    W, b = weights.W.flatten(0, 1).double(), weights.b.flatten(0, 1).double()
    loss, converged = b.new_zeros(len(b)), torch.zeros(len(b), dtype=torch.bool)

    def minimise_batch(part: Tensor) -> dict[str, Tensor]:
        minimum = minimise(
            _build_loss(_select_streams(single_setting, part)),
            (W[part], b[part]),
            max_iterations=max_iterations,
            gradient_tolerance=gradient_tolerance,
            history=10,
        )
        return {
            "W": minimum.parameters[0].clone(),
            "b": minimum.parameters[1].clone(),
            "loss": minimum.loss,
            "converged": minimum.converged,
        }

    def minimise_rows(rows: Tensor, pass_name: str) -> None:
        parts = rows.split(MAX_BATCH) if len(rows) else ()
        for i, part in enumerate(track(parts, "polishing")):
            batch = compute(f"{pass_name}_{i}", partial(minimise_batch, part))
            W[part], b[part], loss[part], converged[part] = (batch[key] for key in ("W", "b", "loss", "converged"))

    minimise_rows(torch.arange(len(b)), "first")
    mean = single_setting.density.double() * (0.0 if program.distribution.signed else 0.5)
    stuck = (W.norm(dim=1) < MAX_DROPPED_NORM) & (b <= 0) & (mean > 0)
    b = torch.where(stuck, mean, b)
    minimise_rows(stuck.any(1).nonzero()[:, 0], "again")
    return PolishedInstances(
        Weights(W.unflatten(0, shape), b.unflatten(0, shape), None), loss.view(shape), converged.view(shape)
    )


def _select_streams(program: Program, rows: Tensor) -> Program:
    """Return some streams of a program."""
    return program._replace(
        seeds=program.seeds[rows], density=program.density[rows], importance=program.importance[rows]
    )


def _build_loss(program: Program):
    def loss(parameters: tuple[Tensor, ...], which: Tensor) -> Tensor:
        W, b = parameters
        return population_loss(_select_streams(program, which), Weights(W[:, None], b[:, None], None))[:, 0]

    return loss
