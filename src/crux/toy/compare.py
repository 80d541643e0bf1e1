"""Compare instances that differ only in their seed on the same samples, for models without an exact loss.

By default each stream has its own held-out samples, so that the lowest of many losses partly reflects easy samples.
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
from crux.toy.program import Program, TrainedProgram, held_out_loss
from crux.toy.superposition import Weights, sampled_loss, weights_from_tensors, weights_to_tensors


def losses_on_shared_samples(trained: TrainedProgram, *, n_seeds: int, samples: int) -> Float[Tensor, "stream setting"]:
    """Return the mean loss of each instance on held-out samples that all seeds of a density share.

    The streams are ordered by density, then by seed.
    """
    program, n_settings = trained.program, trained.program.importance.shape[1]

    def seeds_to_settings(values: Tensor) -> Tensor:  # settings are instances that see the same data
        return values.unflatten(0, (-1, n_seeds)).flatten(1, 2)

    weights = Weights(*(seeds_to_settings(v) if v is not None else None for v in trained.weights))  # pyright: ignore[reportArgumentType]
    shared = program._replace(
        seeds=program.seeds[::n_seeds],
        density=program.density[::n_seeds],
        importance=seeds_to_settings(program.importance),
    )
    batch = max(1, min(samples, 2**24 // seeds_to_settings(program.importance).numel()))  # bounds the memory
    loss = held_out_loss(shared, weights, samples=samples, batch=batch)
    return loss.unflatten(1, (n_seeds, n_settings)).flatten(0, 1)


def join_tiles(pieces: Sequence[TrainedProgram]) -> TrainedProgram:
    """Join the trained tiles of a program into one program, without snapshots."""
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
    return TrainedProgram(program, weights, torch.cat([piece.loss for piece in pieces]), {})


def select_streams(trained: TrainedProgram, streams: Int[Tensor, "chosen"]) -> TrainedProgram:
    """Return some streams of a program as a program, without snapshots."""
    program = trained.program._replace(
        seeds=trained.program.seeds[streams],
        density=trained.program.density[streams],
        importance=trained.program.importance[streams],
    )
    W, b, W_out = trained.weights
    weights = Weights(W[streams], b[streams], W_out[streams] if W_out is not None else None)
    return TrainedProgram(program, weights, trained.loss[streams], {})


def polish_on_samples(
    trained: TrainedProgram,
    *,
    active: int,
    max_iterations: int,
    compute: Compute = compute_now,
) -> TrainedProgram:
    """Minimise the loss of each instance on fixed samples by L-BFGS, without batch noise and without weight decay.

    There are enough samples for the rarest feature to be active in `active` of them on average. With too few, the weights adapt to the
    gaps between samples: at small densities, what matters is features that are active together.

    Args:
        compute: computes a stream, given its name; may return a saved result instead.
    """
    pieces = []
    for stream in track(range(len(trained.program.seeds)), "polishing"):
        one = select_streams(trained, torch.tensor([stream]))
        polished = compute(
            f"stream_{stream}", partial(_polish_stream, one, active=active, max_iterations=max_iterations)
        )
        pieces.append(one._replace(weights=weights_from_tensors(polished)))
    return join_tiles(pieces)


def _polish_stream(one: TrainedProgram, *, active: int, max_iterations: int) -> dict[str, Tensor]:
    samples = math.ceil(active / float(one.program.density.min()))
    x = one.program.data(batch=samples, n_batches=1, purpose=Purpose.training)[0]
    model = deepcopy(one.model)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=max_iterations, history_size=20, line_search_fn="strong_wolfe"
    )

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        total = sampled_loss(model, x, one.program.importance).sum()
        total.backward()
        return total

    optimizer.step(evaluate)  # pyright: ignore[reportArgumentType]
    return weights_to_tensors(model.weights)
