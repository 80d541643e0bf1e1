"""Optima of a grid of settings, lowered by those of the pixels beside them: they may know a basin that no restart was in."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.toy.exact.polish import Polished, polish
from crux.toy.program import Program
from crux.toy.superposition import Weights

BETTER = 1e-6
"""By what share of it a loss must be lower to count."""

Classes = Callable[[Float[Tensor, "*batch n_hidden n_features"]], Int[Tensor, "*batch"]]


def lowered_by_neighbours(
    program: Program, best: Polished, *, classes: Classes, gradient_tolerance: float, max_iterations: int
) -> tuple[Polished, int]:
    """Polishes, where a neighbour is of another class, from the neighbour's weights too; keeps what is lower; until nothing changes.

    Args:
        program: the grid, its streams the first axis and its settings the second.
        best: each pixel's.
        classes: of weights.

    Returns:
        The optima, and how many pixels were lowered.
    """
    W, b, loss = best.weights.W.clone(), best.weights.b.clone(), best.loss.clone()
    start, lowered = loss.clone(), True
    while lowered:
        lowered = False
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            there = torch.roll(classes(W), step, axis)
            edge = torch.arange(W.shape[axis]) == (0 if step == 1 else W.shape[axis] - 1)  # what was rolled around
            differs = (there != classes(W)) & ~(edge[:, None] if axis == 0 else edge[None])
            rows, columns = differs.nonzero(as_tuple=True)
            if not len(rows):
                continue
            tried = polish(
                program._replace(
                    seeds=program.seeds[rows],
                    density=program.density[rows],
                    importance=program.importance[rows, columns][:, None],
                ),
                Weights(torch.roll(W, step, axis)[differs][:, None], torch.roll(b, step, axis)[differs][:, None], None),
                gradient_tolerance=gradient_tolerance,
                max_iterations=max_iterations,
            )
            better = tried.loss[:, 0] < loss[differs] * (1 - BETTER)
            if bool(better.any()):
                at = rows[better], columns[better]
                W[at], b[at], loss[at] = tried.weights.W[better, 0], tried.weights.b[better, 0], tried.loss[better, 0]
                lowered = True
    return Polished(Weights(W, b, None), loss, best.converged), int((loss < start).sum())
