"""Measure learning in jumps: how abruptly a quantity changes during training, and how often the loss drops."""

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

SMOOTH = 5
"""Number of points over which the loss is averaged before its drops are counted, so that jitter is ignored."""

LEAST = 0.02
"""A decrease smaller than this share of the total decrease of the loss does not count as a drop."""

APART = 0.5
"""Two drops are distinct if, between them, the rate of decrease falls to this share of the slower drop's rate or below."""


def largest_jump(values: Float[Tensor, "points n"], *, window: int) -> Float[Tensor, "n"]:
    """Return the largest change within `window` points, as a share of each column's range.

    It is window / (points − 1) for a straight line, 1 for a step, 0 for a constant.
    """
    most = (values[window:] - values[:-window]).abs().amax(0)
    width = values.amax(0) - values.amin(0)
    return torch.where(width > 0, most / torch.where(width > 0, width, 1), 0)


def abruptness(values: Float[Tensor, "points n"]) -> Float[Tensor, "n"]:
    """Return the largest change between neighbouring points divided by the median change, per column.

    It is 1 for a straight line and 0 for a constant.
    """
    change = values.diff(dim=0).abs()
    most = change.amax(0)
    return torch.where(most > 0, most / change.median(0).values.clamp(min=1e-9), 0)


class Drops(NamedTuple):
    """The drops of a loss and the plateaus between them, as indices of points."""

    steepest: list[int]
    """The steepest point of each drop, in order."""
    between: list[int]
    """The flattest point between each two consecutive drops."""


def find_drops(loss: Float[Tensor, "points"]) -> Drops:
    """Find the distinct drops of a loss.

    A drop is a peak of the rate of decrease. Peaks must be separated according to APART, and the loss must fall by LEAST of its total
    decrease from the plateau before a drop to the plateau after it.
    """
    smooth = loss.double().unfold(0, SMOOTH, 1).mean(-1)
    rate = -smooth.diff()
    peaks: list[int] = []
    for i in rate.argsort(descending=True, stable=True).tolist():
        if rate[i] <= 0:
            break
        if all(rate[min(i, j) : max(i, j) + 1].min() <= APART * rate[i] for j in peaks):
            peaks.append(i)
    peaks.sort()
    ends = smooth[[0, *_find_plateaus(rate, peaks), len(smooth) - 1]]
    enough = LEAST * float(smooth[0] - smooth[-1])
    large = [i for i, fall in zip(peaks, (-ends.diff()).tolist(), strict=False) if fall >= enough]
    return Drops([i + SMOOTH // 2 for i in large], [i + SMOOTH // 2 for i in _find_plateaus(rate, large)])


def _find_plateaus(rate: Tensor, peaks: list[int]) -> list[int]:
    return [i + int(rate[i : j + 1].argmin()) for i, j in pairwise(peaks)]
