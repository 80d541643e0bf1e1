"""Ratios of sums over windows of text, with their standard errors."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class RatioOfSums(NamedTuple):
    """A ratio of two totals over the same windows."""

    value: float
    """Σ numerators / Σ denominators."""
    standard_error: float
    """Over windows, as independent draws; NaN if there is one window."""


def ratio_of_sums(
    numerators: Float[np.ndarray, "windows"], denominators: Float[np.ndarray, "windows"]
) -> RatioOfSums | None:
    """Return Σa / Σb, which is a ratio of means and not a mean of ratios; None if Σb is zero.

    The standard error is that of the linearised ratio ρ: √(n / (n − 1) · Σ (a_w − ρ b_w)²) / Σb.
    """
    total = float(denominators.sum())
    if total == 0:
        return None
    ratio = float(numerators.sum()) / total
    n = len(numerators)
    if n < 2:
        return RatioOfSums(ratio, math.nan)
    deviations = float(((numerators - ratio * denominators) ** 2).sum())
    return RatioOfSums(ratio, math.sqrt(n / (n - 1) * deviations) / abs(total))
