"""Comparison of the latents' scores with those of their controls: percentiles of single latents, and the mean difference of pairs."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class ControlComparison(NamedTuple):
    """The mean of a score over latents and over their controls, pair by pair; pairs with a NaN are left out."""

    n: int
    """Number of pairs."""
    latents: float
    """Mean over the latents; NaN if there is no pair."""
    controls: float
    """Mean over their controls."""
    difference: float
    """Mean of latent − control."""
    standard_error: float
    """Of the difference, over pairs: its interval says how far the latents of this SAE differ from controls; NaN for fewer than 2 pairs."""


def compare_pairs(values: Float[np.ndarray, "n"], controls: Float[np.ndarray, "n"]) -> ControlComparison:
    """Return the comparison of the latents' scores with those of the controls that stand for them, in the same order."""
    paired = ~(np.isnan(values) | np.isnan(controls))
    ours, theirs = values[paired].astype(np.float64), controls[paired].astype(np.float64)
    n, difference = len(ours), ours - theirs
    if n == 0:
        return ControlComparison(0, *[float("nan")] * 4)
    error = float(difference.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return ControlComparison(n, float(ours.mean()), float(theirs.mean()), float(difference.mean()), error)


def percentiles(values: Float[np.ndarray, "n"], controls: Float[np.ndarray, "m"]) -> Float[np.ndarray, "n"]:
    """Return each value's percentile among the controls: 100 (number below + half the number of equals) / number of controls.

    Controls that are NaN are left out. A value that is NaN has the percentile NaN, as has every value if there is no control.
    """
    ordered = np.sort(controls[~np.isnan(controls)])
    if len(ordered) == 0:
        return np.full(len(values), np.nan)
    below, up_to = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return np.where(np.isnan(values), np.nan, 100 * (below + up_to) / (2 * len(ordered)))


def percentiles_at_density(
    values: Float[np.ndarray, "n"],
    controls: Float[np.ndarray, "m"],
    *,
    densities: Float[np.ndarray, "n"],
    control_densities: Float[np.ndarray, "m"],
    n_nearest: int,
) -> Float[np.ndarray, "n"]:
    """Return each value's percentile among the `n_nearest` controls around it in the order of density.

    Scores depend on density. So a latent is compared with controls that fire about as often: in the order of density, half of them
    fire less often and half more often than the latent, except at the ends. NaN is treated as in `percentiles`.
    """
    scored = np.flatnonzero(~np.isnan(controls))
    if len(scored) == 0:
        return np.full(len(values), np.nan)
    order = scored[np.argsort(control_densities[scored], kind="stable")]
    n_nearest = min(n_nearest, len(order))
    # the middle of the places at which the latent could be inserted, so that it is centred among controls of the same density too
    left = np.searchsorted(control_densities[order], densities, "left")
    right = np.searchsorted(control_densities[order], densities, "right")
    first = np.clip((left + right) // 2 - n_nearest // 2, 0, len(order) - n_nearest)
    result = np.empty(len(values))
    for i in range(len(values)):
        around = controls[order[first[i] : first[i] + n_nearest]]
        result[i] = 100 * ((around < values[i]).sum() + (around <= values[i]).sum()) / (2 * n_nearest)
    return np.where(np.isnan(values), np.nan, result)
