"""Comparison of losses at equal L0: each run is a point (L0, metric), and the runs of a seed form a curve."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES, BOOTSTRAP_SEED, MIN_SEEDS_FOR_INTERVAL = 10_000, 0, 5
"""Settings of the bootstrap: resamples, seed, and the number of seeds below which only the range is reported."""


def interpolate_at_l0(l0s: Sequence[float], values: Sequence[float], *, l0: float) -> float:
    """Return the metric at an L0, interpolated linearly between the two neighbouring points; NaN outside their range.

    Braun et al. interpolate in the same way (its `plot_performance.py`; docs/reference/end_to_end_saes.md §6).
    """
    points = sorted(zip(l0s, values, strict=True))  # np.interp needs ascending L0
    return float(np.interp(l0, *zip(*points, strict=True), left=math.nan, right=math.nan)) if points else math.nan


class Ratio(NamedTuple):
    """The ratio of a metric between two losses, over the seeds that both have."""

    of_means: float
    """The mean over seeds of one loss divided by the mean over seeds of the other."""
    lowest: float
    """The lowest ratio of a single seed."""
    highest: float
    """The highest ratio of a single seed."""
    interval: tuple[float, float] | None
    """The 95 % bootstrap interval; None with fewer than `MIN_SEEDS_FOR_INTERVAL` seeds."""


def ratio_of_means(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Return the ratio of a metric between two losses; entry i of both is of the same seed, and so of the same data.

    For the interval, seeds are drawn with replacement `RESAMPLES` times, the same ones for both losses, by a generator with seed
    `BOOTSTRAP_SEED`. It consists of the percentiles 2.5 and 97.5 of the ratios of means.
    """
    above, below = np.asarray(numerators, float), np.asarray(denominators, float)
    assert above.shape == below.shape
    assert above.size > 0
    by_seed, interval = above / below, None
    if above.size >= MIN_SEEDS_FOR_INTERVAL:
        drawn = np.random.default_rng(BOOTSTRAP_SEED).integers(above.size, size=(RESAMPLES, above.size))
        low, high = np.percentile(above[drawn].mean(axis=1) / below[drawn].mean(axis=1), [2.5, 97.5])
        interval = (float(low), float(high))
    return Ratio(float(above.mean() / below.mean()), float(by_seed.min()), float(by_seed.max()), interval)
