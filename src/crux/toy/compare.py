"""Compares instances that differ in their seed alone on the very same samples, for models without an exact loss.

Each stream's held-out samples are its own, so that the lowest of many losses is partly the luck of its samples; on shared ones it is not.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.progress import track
from crux.toy.exact.polish import Compute, compute_now
from crux.toy.features import Purpose
from crux.toy.program import Program, Trained, held_out_loss
from crux.toy.superposition import Weights, error, tensors, weights_of


def shared_losses(trained: Trained, *, n_seeds: int, samples: int) -> Float[Tensor, "stream setting"]:
    """Return the mean error of each instance, on held-out samples that all seeds of a density share (seeds run fastest among streams)."""
    program, n_settings = trained.program, trained.program.importance.shape[1]

    def gathered(values: Tensor) -> Tensor:  # the seeds of a density become settings: instances that see the same data
        return values.unflatten(0, (-1, n_seeds)).flatten(1, 2)

    weights = Weights(*(gathered(v) if v is not None else None for v in trained.weights))  # pyright: ignore[reportArgumentType]
    shared = program._replace(
        seeds=program.seeds[::n_seeds],
        density=program.density[::n_seeds],
        importance=gathered(program.importance),
    )
    batch = max(1, min(samples, 2**24 // gathered(program.importance).numel()))  # numbers at a time
    loss = held_out_loss(shared, weights, samples=samples, batch=batch)
    return loss.unflatten(1, (n_seeds, n_settings)).flatten(0, 1)


def join_tiles(pieces: Sequence[Trained]) -> Trained:
    """Return the trained tiles of a program as one; without snapshots."""
    programs = [piece.program for piece in pieces]
    first: Program = programs[0]
    program = first._replace(
        seeds=torch.cat([p.seeds for p in programs]),
        density=torch.cat([p.density for p in programs]),
        importance=torch.cat([p.importance for p in programs]),
    )
    W_out = [piece.weights.W_out for piece in pieces]
    weights = Weights(
        torch.cat([piece.weights.W for piece in pieces]),
        torch.cat([piece.weights.b for piece in pieces]),
        None if W_out[0] is None else torch.cat([w for w in W_out if w is not None]),
    )
    return Trained(program, weights, torch.cat([piece.loss for piece in pieces]), {})


def select_streams(trained: Trained, streams: Int[Tensor, "chosen"]) -> Trained:
    """Return some streams of the program as one of their own; without snapshots."""
    program = trained.program._replace(
        seeds=trained.program.seeds[streams],
        density=trained.program.density[streams],
        importance=trained.program.importance[streams],
    )
    W, b, W_out = trained.weights
    weights = Weights(W[streams], b[streams], W_out[streams] if W_out is not None else None)
    return Trained(program, weights, trained.loss[streams], {})


def polish_on_samples(
    trained: Trained,
    *,
    active: int,
    max_iterations: int,
    compute: Compute = compute_now,
) -> Trained:
    """Return each instance where L-BFGS leads it: no noise of batches, no decay of weights.

    The samples stay the same; there are so many that its rarest feature is active in `active` of them on average. Too few, and weights
    settle where no sample is: what counts at small densities is features that are active together.

    Args:
        compute: computes the streams, each by its name.
    """
    pieces = []
    for stream in track(range(len(trained.program.seeds)), "polishing"):
        one = select_streams(trained, torch.tensor([stream]))
        end = compute(f"stream_{stream}", partial(_polish_stream, one, active=active, max_iterations=max_iterations))
        pieces.append(one._replace(weights=weights_of(end)))
    return join_tiles(pieces)


def _polish_stream(one: Trained, *, active: int, max_iterations: int) -> dict[str, Tensor]:
    samples = math.ceil(active / float(one.program.density.min()))
    x = one.program.data(batch=samples, n_batches=1, purpose=Purpose.training)[0]
    model = deepcopy(one.model)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=max_iterations, history_size=20, line_search_fn="strong_wolfe"
    )

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        total = error(model, x, one.program.importance).sum()
        total.backward()
        return total

    optimizer.step(evaluate)  # pyright: ignore[reportArgumentType]
    return tensors(model.weights)
