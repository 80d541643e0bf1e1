"""Which features are active together: every activity pattern of a feature distribution, and its probability.

Small n only: the independent features have 2^n patterns. Density p is P(x_i ≠ 0) = 1 − S, with the sparsity S of Elhage et al. 2209.10652.
"""

from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Activity(NamedTuple):
    """The patterns that can occur, the same for every instance, and their probabilities."""

    patterns: Bool[Tensor, "n_patterns n_features"]
    weights: Float[Tensor, "*batch n_patterns"]
    """Probabilities; they sum to one."""


def independent(density: Float[Tensor, "*batch n_features"]) -> Activity:
    """Each feature active by itself, feature i with probability `density[..., i]`."""
    n = density.shape[-1]
    patterns = torch.tensor(list(product((False, True), repeat=n)), device=density.device)
    weights = torch.where(patterns, density[..., None, :], 1 - density[..., None, :]).prod(-1)
    return Activity(patterns, weights)


def correlated(density: Float[Tensor, "*batch n_sets"], *, set_size: int) -> Activity:
    """Sets of `set_size` neighbours, all active or none, a set with probability `density[..., set]` by itself."""
    sets = independent(density)
    return Activity(sets.patterns.repeat_interleave(set_size, dim=-1), sets.weights)


def anticorrelated(density: Float[Tensor, "*batch n_sets"], *, set_size: int) -> Activity:
    """Sets of `set_size` neighbours of which at most one is active.

    A set is active with probability `density[..., set]` by itself, and then one member, each as likely as the others:
    a feature's own density is `density / set_size`.
    """
    n_sets = density.shape[-1]
    members = torch.cat([torch.zeros(1, set_size), torch.eye(set_size)]).bool().to(density.device)
    chosen = torch.tensor(list(product(range(set_size + 1), repeat=n_sets)), device=density.device)
    each = torch.where(chosen > 0, density[..., None, :] / set_size, 1 - density[..., None, :])
    return Activity(members[chosen].flatten(1), each.prod(-1))


def one_active(probabilities: Float[Tensor, "*batch n_features"]) -> Activity:
    """Exactly one feature active, feature i with the probability given; they sum to one."""
    n = probabilities.shape[-1]
    return Activity(torch.eye(n, dtype=torch.bool, device=probabilities.device), probabilities)
