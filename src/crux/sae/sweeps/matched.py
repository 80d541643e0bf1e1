"""Comparing losses at equal L0: each run is a point (L0, measurement), each seed's runs a curve."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES, BOOTSTRAP_SEED, ENOUGH_SEEDS = 10_000, 0, 5
"""Of the bootstrap; with fewer seeds only the range is reported."""


def interpolate_at_l0(l0s: Sequence[float], values: Sequence[float], *, l0: float) -> float:
    """Return the measurement at an L0, linear between the two neighbouring points; NaN outside their range.

    The paper interpolates in the same way (its `plot_performance.py`; docs/reference/end_to_end_saes.md §6).
    """
    points = sorted(zip(l0s, values, strict=True))
    return float(np.interp(l0, *zip(*points, strict=True), left=math.nan, right=math.nan)) if points else math.nan


class Ratio(NamedTuple):
    """How two losses' measurements compare, over the seeds that both have."""

    of_means: float
    """Mean over seeds / mean over seeds."""
    lowest: float
    highest: float
    """Of the seeds' own ratios."""
    interval: tuple[float, float] | None
    """95 %, from `ENOUGH_SEEDS` seeds on."""


def ratio_of_means(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Return the ratio of two losses' measurements; entry i of both is of the same seed, which gives the data's order to both.

    The interval is the bootstrap's: seeds are drawn with replacement, the same for both losses, `RESAMPLES` times by the
    generator of seed `BOOTSTRAP_SEED`; from the ratios of means, the percentiles 2.5 and 97.5.
    """
    above, below = np.asarray(numerators, float), np.asarray(denominators, float)
    assert above.shape == below.shape
    assert above.size > 0
    own, interval = above / below, None
    if above.size >= ENOUGH_SEEDS:
        drawn = np.random.default_rng(BOOTSTRAP_SEED).integers(above.size, size=(RESAMPLES, above.size))
        low, high = np.percentile(above[drawn].mean(axis=1) / below[drawn].mean(axis=1), [2.5, 97.5])
        interval = (float(low), float(high))
    return Ratio(float(above.mean() / below.mean()), float(own.min()), float(own.max()), interval)
