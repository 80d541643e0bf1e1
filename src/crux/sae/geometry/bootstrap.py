"""The bootstrap over latents, and the mean and range over pairs of seeds.

Latents of one SAE are not independent draws. An interval over latents therefore describes this pair of SAEs only ("within this pair");
a claim about a loss is based on several pairs of seeds, of which the mean and the range are given.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

RESAMPLES = 10_000
_AT_ONCE = 2**23
"""Drawn indices that are in memory at once."""


class Difference(NamedTuple):
    """The difference between two means over latents, with its interval within this pair of SAEs."""

    mean: float
    low: float
    """The percentile 2.5 of the resampled differences."""
    high: float
    """The percentile 97.5."""


class Spread(NamedTuple):
    """A number over pairs of seeds."""

    mean: float
    lowest: float
    highest: float
    n: int
    """Number of pairs."""


def bootstrap_difference(
    a: Float[np.ndarray, "n"], b: Float[np.ndarray, "m"], *, seed: int, resamples: int = RESAMPLES
) -> Difference:
    """Return mean(a) − mean(b) with the percentile bootstrap interval of 95 %: both sets of latents are drawn with replacement."""
    generator = np.random.default_rng(seed)
    differences = _resample_means(a, generator, resamples) - _resample_means(b, generator, resamples)
    low, high = np.percentile(differences, [2.5, 97.5])
    return Difference(float(np.mean(a, dtype=np.float64) - np.mean(b, dtype=np.float64)), float(low), float(high))


def _resample_means(values: np.ndarray, generator: np.random.Generator, resamples: int) -> np.ndarray:
    values, n = values.astype(np.float64), len(values)
    step = max(1, _AT_ONCE // n)
    sizes = [min(step, resamples - first) for first in range(0, resamples, step)]
    return np.concatenate([values[generator.integers(n, size=(size, n))].mean(1) for size in sizes])


def spread(values: Sequence[float]) -> Spread:
    """Return the mean and the range of a number over pairs of seeds; NaN without any."""
    if not values:
        return Spread(float("nan"), float("nan"), float("nan"), 0)
    return Spread(float(np.mean(values)), min(values), max(values), len(values))
