"""Cosines between the directions of features that form sets: within one set, and between sets. Neighbouring features form a set."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crux.toy.geometry.dimensionality import unit_columns


def pairwise_cosines(W: Float[Tensor, "*batch n_hidden n_features"]) -> Float[Tensor, "*batch n_features n_features"]:
    """Return Ŵ_i · Ŵ_j for all pairs of features."""
    directions = unit_columns(W)
    return directions.mT @ directions


def same_set_pairs(n_features: int, n_sets: int) -> Bool[Tensor, "n_features n_features"]:
    """Return True for pairs of different features of the same set."""
    set_index = torch.arange(n_features) // (n_features // n_sets)
    return (set_index[:, None] == set_index) & ~torch.eye(n_features, dtype=torch.bool)


def cosines_within_sets(
    W: Float[Tensor, "*batch n_hidden n_features"], *, n_sets: int
) -> Float[Tensor, "*batch pairs"]:
    """Return the cosines of all pairs within a set, each pair once."""
    return pairwise_cosines(W)[..., same_set_pairs(W.shape[-1], n_sets).triu()]


def lowest_cosine_across_sets(
    W: Float[Tensor, "*batch n_hidden n_features"], *, n_sets: int
) -> Float[Tensor, "*batch n_features"]:
    """Return, for each feature, the lowest cosine with a feature of another set: −1 if one is antipodal to it."""
    same_set = same_set_pairs(W.shape[-1], n_sets) | torch.eye(W.shape[-1], dtype=torch.bool)
    return pairwise_cosines(W).masked_fill(same_set, torch.inf).amin(-1)


def lowest_cosine_within_sets(
    W: Float[Tensor, "*batch n_hidden n_features"], *, n_sets: int
) -> Float[Tensor, "*batch n_sets"]:
    """Return the lowest cosine within each set: 1 if its features share one direction, so that only their sum is represented."""
    size = W.shape[-1] // n_sets
    blocks = pairwise_cosines(W).unflatten(-1, (n_sets, size)).unflatten(-3, (n_sets, size))
    return torch.stack([blocks[..., k, :, k, :].amin((-2, -1)) for k in range(n_sets)], -1)
