"""Improve the optima of a grid of settings by starting again from those of the neighbouring pixels.

A neighbour may have found a basin that none of a pixel's restarts started in.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.toy.exact.polish import PolishedInstances, polish
from crux.toy.program import Program
from crux.toy.superposition import Weights

MIN_DECREASE = 1e-6
"""A new optimum replaces the old one if its loss is lower by more than this share."""

Classify = Callable[[Float[Tensor, "*batch n_hidden n_features"]], Int[Tensor, "*batch"]]


def polish_from_neighbours(
    program: Program, best: PolishedInstances, *, classify: Classify, gradient_tolerance: float, max_iterations: int
) -> tuple[PolishedInstances, int]:
    """Polish each pixel from the weights of neighbours of another class, keep what is lower, and repeat until nothing changes.

    Args:
        program: the grid; its streams are the first axis and its settings the second.
        best: the best optimum of each pixel so far.
        classify: computes the class of weights.

    Returns:
        The optima, and the number of pixels whose loss decreased.
    """
    W, b, loss = best.weights.W.clone(), best.weights.b.clone(), best.loss.clone()
    start_loss, lowered = loss.clone(), True
    while lowered:
        lowered = False
        for axis, step in (
            (0, 1),
            (0, -1),
            (1, 1),
            (1, -1),
        ):  # the four neighbours; axis 0 is the stream, axis 1 the setting
            neighbour_class = torch.roll(classify(W), step, axis)
            border = 0 if step == 1 else W.shape[axis] - 1  # where `roll` wraps around, there is no neighbour
            at_border = torch.arange(W.shape[axis]) == border
            differs = (neighbour_class != classify(W)) & ~(at_border[:, None] if axis == 0 else at_border[None])
            rows, columns = differs.nonzero(as_tuple=True)
            if not len(rows):
                continue
            polished = polish(
                program._replace(
                    seeds=program.seeds[rows],
                    density=program.density[rows],
                    importance=program.importance[rows, columns][:, None],
                ),
                Weights(torch.roll(W, step, axis)[differs][:, None], torch.roll(b, step, axis)[differs][:, None], None),
                gradient_tolerance=gradient_tolerance,
                max_iterations=max_iterations,
            )
            better = polished.loss[:, 0] < loss[differs] * (1 - MIN_DECREASE)
            if bool(better.any()):
                pixels = rows[better], columns[better]
                W[pixels], b[pixels] = polished.weights.W[better, 0], polished.weights.b[better, 0]
                loss[pixels] = polished.loss[better, 0]
                lowered = True
    return PolishedInstances(Weights(W, b, None), loss, best.converged), int((loss < start_loss).sum())
