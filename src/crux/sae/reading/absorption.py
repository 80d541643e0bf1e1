"""Absorption and hedging, measured where the true features are known: in toy models, or in constructed activations.

A feature is absorbed if its latent is silent although the feature is present, because the latent of a more special feature, which implies
it, contains its direction (Chanin et al. 2409.14507). Published measures must guess the true features; here they are given.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.optimize
from jaxtyping import Bool, Float, Int

from crux.config.errors import UserError

MIN_COSINE = 0.1
"""Least cosine between the child's latent and the parent's direction at which the child's latent counts as containing the parent."""

NO_LATENT = -1
"""Stands for the latent of a feature that has none, because there are fewer latents than features."""


class Absorption(NamedTuple):
    """How a parent feature is represented on tokens with and without a child feature that implies it."""

    child: int
    parent: int
    child_latent: int
    """Latent matched to the child, or `NO_LATENT`."""
    parent_latent: int
    """Latent matched to the parent, or `NO_LATENT`."""
    n_tokens: int
    """Number of tokens on which the child is on."""
    absorbed: float
    """Share of them on which the parent's latent is silent and the child's latent fires, with a cosine of at least `min_cosine` to the
    parent's direction."""
    missed: float
    """Share of them on which the parent's latent is silent and the child's does not replace it."""
    missed_without_child: float
    """Share of the tokens with the parent but without the child on which the parent's latent is silent: what is missed anyway. NaN if
    there is no such token."""
    cosine: float
    """Cosine of the child's latent with the parent's direction, less what the directions of child and parent have in common would give:
    cos(w, parent) − cos(w, child) · cos(child, parent). 0 if the child's latent is the child's direction."""


def match_features(
    directions: Float[np.ndarray, "n_features d"], dictionary: Float[np.ndarray, "n_latents d"]
) -> Int[np.ndarray, "n_features"]:
    """Return the latent of each feature: the one-to-one matching with the largest sum of signed cosines.

    With fewer latents than features, the features left over have `NO_LATENT`.
    """
    cosines = _unit(directions) @ _unit(dictionary).T
    matched = np.full(len(directions), NO_LATENT)
    features, latents = scipy.optimize.linear_sum_assignment(-cosines)
    matched[features] = latents
    return matched


def measure_absorption(
    present: Bool[np.ndarray, "tokens n_features"],
    fires: Bool[np.ndarray, "tokens n_latents"],
    *,
    directions: Float[np.ndarray, "n_features d"],
    dictionary: Float[np.ndarray, "n_latents d"],
    pairs: Sequence[tuple[int, int]],
    min_cosine: float = MIN_COSINE,
) -> list[Absorption]:
    """Measure the absorption of parents by their children.

    Args:
        present: whether each true feature is on; fires: whether each latent fires; on the same tokens.
        directions: the true directions; dictionary: the decoder's directions. Neither needs unit norm.
        pairs: (child, parent) features: wherever the child is on, so is the parent.

    Raises:
        UserError: if a child is never on, or on without its parent.
    """
    matched = match_features(directions, dictionary)
    features, latents = _unit(directions), _unit(dictionary)
    results = []
    for child, parent in pairs:
        on, parent_on = present[:, child], present[:, parent]
        if not on.any():
            raise UserError(f"absorption: feature {child} is never on")
        if (on & ~parent_on).any():
            raise UserError(f"absorption: feature {child} is on without feature {parent}, which it should imply")
        of_child, of_parent = int(matched[child]), int(matched[parent])
        silent = ~_firing(fires, of_parent)
        with_parent = 0.0 if of_child == NO_LATENT else float(latents[of_child] @ features[parent])
        shared = 0.0 if of_child == NO_LATENT else float(latents[of_child] @ features[child])
        replaced = silent & _firing(fires, of_child) & (with_parent >= min_cosine)
        alone = parent_on & ~on
        results.append(
            Absorption(
                child=child,
                parent=parent,
                child_latent=of_child,
                parent_latent=of_parent,
                n_tokens=int(on.sum()),
                absorbed=float(replaced[on].mean()),
                missed=float((silent & ~replaced)[on].mean()),
                missed_without_child=float(silent[alone].mean()) if alone.any() else float("nan"),
                cosine=with_parent - shared * float(features[child] @ features[parent]),
            )
        )
    return results


class Hedging(NamedTuple):
    """The mixture of correlated features in one latent."""

    feature: int
    """Feature with the largest cosine."""
    cosine: float
    """Its cosine with the latent."""
    other: int
    """The correlated feature that is mixed in most; −1 if no feature is correlated with the first."""
    other_cosine: float
    """Its cosine with the latent, less cos(latent, feature) · cos(feature, other): 0 if the latent is the feature's direction."""


def measure_hedging(
    magnitudes: Float[np.ndarray, "tokens n_features"],
    *,
    directions: Float[np.ndarray, "n_features d"],
    dictionary: Float[np.ndarray, "n_latents d"],
    min_correlation: float,
) -> list[Hedging]:
    """Return, for each latent, how much it mixes features that occur together (Chanin et al. 2505.11756: narrow SAEs do).

    Args:
        magnitudes: of the true features on tokens.
        min_correlation: least |Pearson correlation| of two features' magnitudes at which one counts as correlated with the other.
    """
    features, latents = _unit(directions), _unit(dictionary)
    cosines, between = latents @ features.T, features @ features.T
    deviations = magnitudes - magnitudes.mean(0)
    scale = np.linalg.norm(deviations, axis=0)
    deviations = deviations / np.where(scale > 0, scale, 1.0)
    correlated = np.abs(deviations.T @ deviations) >= min_correlation
    np.fill_diagonal(correlated, False)
    results = []
    for row in cosines:
        feature = int(row.argmax())
        excess = row - row[feature] * between[feature]
        others = np.where(correlated[feature], np.abs(excess), -1.0)
        other = int(others.argmax())
        found = others[other] >= 0
        results.append(
            Hedging(feature, float(row[feature]), other if found else -1, float(excess[other]) if found else 0.0)
        )
    return results


def _unit(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    rows = rows.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)


def _firing(fires: Bool[np.ndarray, "tokens n_latents"], latent: int) -> Bool[np.ndarray, "tokens"]:
    return np.zeros(len(fires), bool) if latent == NO_LATENT else fires[:, latent]
