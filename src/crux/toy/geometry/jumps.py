"""Learning in jumps: how much of a feature's change comes at once, and how many times the loss drops."""

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

SMOOTH = 5
"""Points over which the loss is averaged before its drops are counted: jitter is none."""

LEAST = 0.02
"""Of the whole fall of the loss: what falls by less is no drop of its own."""

APART = 0.5
"""Two drops are two if between them the loss falls at most at this share of the gentler one's rate."""


def at_once(values: Float[Tensor, "points n"], *, window: int) -> Float[Tensor, "n"]:
    """The largest change within `window` points as a share of each column's range: window / (points − 1) for a straight line, 1 for a step.

    0 where a column is constant.
    """
    most = (values[window:] - values[:-window]).abs().amax(0)
    width = values.amax(0) - values.amin(0)
    return torch.where(width > 0, most / torch.where(width > 0, width, 1), 0)


def abruptness(values: Float[Tensor, "points n"]) -> Float[Tensor, "n"]:
    """The largest change between neighbouring points by the median change of each column; 1 for a straight line, 0 where it is constant."""
    change = values.diff(dim=0).abs()
    most = change.amax(0)
    return torch.where(most > 0, most / change.median(0).values.clamp(min=1e-9), 0)


class Drops(NamedTuple):
    """Where a loss falls, as indices of its points."""

    steepest: list[int]
    """One for each distinct drop, in their order."""
    between: list[int]
    """One for each two neighbours: where it falls least on the way, the plateau."""


def drops(loss: Float[Tensor, "points"]) -> Drops:
    """The distinct drops: peaks of the rate, apart by APART, each of LEAST of the whole fall from the plateau before to that after."""
    smooth = loss.double().unfold(0, SMOOTH, 1).mean(-1)
    rate = -smooth.diff()
    peaks: list[int] = []
    for i in rate.argsort(descending=True, stable=True).tolist():
        if rate[i] <= 0:
            break
        if all(rate[min(i, j) : max(i, j) + 1].min() <= APART * rate[i] for j in peaks):
            peaks.append(i)
    peaks.sort()
    ends = smooth[[0, *_slowest(rate, peaks), len(smooth) - 1]]
    enough = LEAST * float(smooth[0] - smooth[-1])
    kept = [i for i, fall in zip(peaks, (-ends.diff()).tolist(), strict=False) if fall >= enough]
    return Drops([i + SMOOTH // 2 for i in kept], [i + SMOOTH // 2 for i in _slowest(rate, kept)])


def _slowest(rate: Tensor, peaks: list[int]) -> list[int]:
    return [i + int(rate[i : j + 1].argmin()) for i, j in pairwise(peaks)]
