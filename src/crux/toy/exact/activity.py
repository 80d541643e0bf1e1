"""Enumerate the activity patterns of sparse features (which features are non-zero together) with their probabilities.

Only for small n: n independent features have 2^n patterns. The density is p = P(x_i ≠ 0) = 1 − S, with the sparsity S of Elhage
et al. 2209.10652.
"""

from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Activity(NamedTuple):
    """The possible activity patterns, which all instances share, and the probabilities of the patterns."""

    patterns: Bool[Tensor, "n_patterns n_features"]
    """True for the active features."""
    weights: Float[Tensor, "*batch n_patterns"]
    """Probabilities of the patterns; they sum to one."""


def enumerate_independent(density: Float[Tensor, "*batch n_features"]) -> Activity:
    """Return the 2^n patterns of independent features; feature i is active with probability `density[..., i]`."""
    n = density.shape[-1]
    patterns = torch.tensor(list(product((False, True), repeat=n)), device=density.device)
    weights = torch.where(patterns, density[..., None, :], 1 - density[..., None, :]).prod(-1)
    return Activity(patterns, weights)


def enumerate_correlated(density: Float[Tensor, "*batch n_sets"], *, set_size: int) -> Activity:
    """Return the 2^n_sets patterns of features in independent sets, each set wholly active or wholly inactive.

    A set is `set_size` neighbouring features; it is active with probability `density[..., set]`.
    """
    sets = enumerate_independent(density)
    return Activity(sets.patterns.repeat_interleave(set_size, dim=-1), sets.weights)


def enumerate_anticorrelated(density: Float[Tensor, "*batch n_sets"], *, set_size: int) -> Activity:
    """Return the (set_size + 1)^n_sets patterns of features in independent sets with at most one active feature per set.

    A set is `set_size` neighbouring features. It is active with probability `density[..., set]`; one of its features, chosen
    uniformly, is then active. The density of a single feature is therefore `density / set_size`.
    """
    n_sets = density.shape[-1]
    members = torch.cat([torch.zeros(1, set_size), torch.eye(set_size)]).bool().to(density.device)
    chosen = torch.tensor(list(product(range(set_size + 1), repeat=n_sets)), device=density.device)
    probabilities = torch.where(chosen > 0, density[..., None, :] / set_size, 1 - density[..., None, :])
    return Activity(members[chosen].flatten(1), probabilities.prod(-1))


def enumerate_one_active(probabilities: Float[Tensor, "*batch n_features"]) -> Activity:
    """Return the n patterns with exactly one active feature; `probabilities` sum to one."""
    n = probabilities.shape[-1]
    return Activity(torch.eye(n, dtype=torch.bool, device=probabilities.device), probabilities)
