"""Measure learning in jumps: how abruptly a quantity changes during training, and how often the loss drops."""

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

SMOOTHING_POINTS = 5
"""Number of points over which the loss is averaged before its drops are counted, so that jitter is ignored."""

MIN_DROP = 0.02
"""A decrease smaller than this share of the total decrease of the loss does not count as a drop."""

MAX_RATE_BETWEEN = 0.5
"""Two drops are distinct if, between them, the rate of decrease falls to this share of the slower drop's rate or below."""


def largest_jump(values: Float[Tensor, "points n"], *, window: int) -> Float[Tensor, "n"]:
    """Return the largest change within `window` points, as a share of each column's range.

    It is window / (points − 1) for a straight line, 1 for a step, 0 for a constant.
    """
    largest = (values[window:] - values[:-window]).abs().amax(0)
    value_range = values.amax(0) - values.amin(0)
    return torch.where(value_range > 0, largest / torch.where(value_range > 0, value_range, 1), 0)


def abruptness(values: Float[Tensor, "points n"]) -> Float[Tensor, "n"]:
    """Return the largest change between neighbouring points divided by the median change, per column.

    It is 1 for a straight line and 0 for a constant.
    """
    change = values.diff(dim=0).abs()
    largest = change.amax(0)
    return torch.where(largest > 0, largest / change.median(0).values.clamp(min=1e-9), 0)


class Drops(NamedTuple):
    """The drops of a loss and the plateaus between them, as indices of points."""

    steepest: list[int]
    """The steepest point of each drop, in order."""
    between: list[int]
    """The flattest point between each two consecutive drops."""


def find_drops(loss: Float[Tensor, "points"]) -> Drops:
    """Find the distinct drops of a loss.

    A drop is a peak of the rate of decrease. Peaks must be separated according to MAX_RATE_BETWEEN, and the loss must fall by MIN_DROP of
    its total decrease from the plateau before a drop to the plateau after it.
    """
    smooth = loss.double().unfold(0, SMOOTHING_POINTS, 1).mean(-1)
    rate = -smooth.diff()
    peaks: list[int] = []
    # the steepest points first, so that at i the loss falls no faster than at any peak j found before
    for i in rate.argsort(descending=True, stable=True).tolist():
        if rate[i] <= 0:
            break
        if all(rate[min(i, j) : max(i, j) + 1].min() <= MAX_RATE_BETWEEN * rate[i] for j in peaks):
            peaks.append(i)
    peaks.sort()
    plateau_losses = smooth[[0, *_find_plateaus(rate, peaks), len(smooth) - 1]]  # before, between and after the drops
    min_fall = MIN_DROP * float(smooth[0] - smooth[-1])
    # not strict: without a peak there is still one fall, from the first point to the last
    large = [i for i, fall in zip(peaks, (-plateau_losses.diff()).tolist(), strict=False) if fall >= min_fall]
    # Point i of the smoothed loss is a mean whose middle is SMOOTHING_POINTS // 2 points later.
    return Drops(
        [i + SMOOTHING_POINTS // 2 for i in large], [i + SMOOTHING_POINTS // 2 for i in _find_plateaus(rate, large)]
    )


def _find_plateaus(rate: Tensor, peaks: list[int]) -> list[int]:
    """Return the point with the lowest rate of decrease between each two consecutive peaks."""
    return [i + int(rate[i : j + 1].argmin()) for i, j in pairwise(peaks)]
