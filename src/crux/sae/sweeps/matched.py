"""Comparing losses at equal L0: each run is a point (L0, measurement), each seed's runs a curve."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES, BOOTSTRAP_SEED, ENOUGH_SEEDS = 10_000, 0, 5
"""Of the bootstrap; with fewer seeds the range is told alone."""


class Point(NamedTuple):
    """One judged SAE."""

    l0: float
    """Latents a token."""
    value: float
    """What was measured, such as the CE loss increase in nats a token."""


def at_l0(points: Sequence[Point], *, l0: float) -> float | None:
    """The measurement at an L0, linear between the two neighbouring points; None outside their range.

    The paper interpolates in the same way (its `plot_performance.py`; reference §3, Fig. 1).
    """
    known = sorted(points)
    xs, ys = [p.l0 for p in known], [p.value for p in known]
    if not known or not xs[0] <= l0 <= xs[-1]:
        return None
    return float(np.interp(l0, xs, ys))


class Ratio(NamedTuple):
    """How two losses' measurements compare, over the seeds that both have."""

    of_means: float
    """Mean over seeds / mean over seeds."""
    lowest: float
    highest: float
    """Of the seeds' own ratios."""
    interval: tuple[float, float] | None
    """95 %, from `ENOUGH_SEEDS` seeds on."""


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """The ratio of two losses' measurements; entry i of both is of the same seed, which gives the data's order to both.

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
