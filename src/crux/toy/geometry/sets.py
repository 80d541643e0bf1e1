"""How features of one set lie to each other, and to those of the other sets: cosines between their directions."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crux.toy.geometry.dimensionality import unit_columns


def cosines(W: Float[Tensor, "*batch n_hidden n_features"]) -> Float[Tensor, "*batch n_features n_features"]:
    """Ŵ_i · Ŵ_j."""
    directions = unit_columns(W)
    return directions.mT @ directions


def mates(n_features: int, n_sets: int) -> Bool[Tensor, "n_features n_features"]:
    """Which pairs are different features of the same set (neighbours form a set)."""
    of_set = torch.arange(n_features) // (n_features // n_sets)
    return (of_set[:, None] == of_set) & ~torch.eye(n_features, dtype=torch.bool)


def within(W: Float[Tensor, "*batch n_hidden n_features"], *, n_sets: int) -> Float[Tensor, "*batch pairs"]:
    """Cosines of the pairs within the sets, each pair once."""
    return cosines(W)[..., mates(W.shape[-1], n_sets).triu()]


def opposite(W: Float[Tensor, "*batch n_hidden n_features"], *, n_sets: int) -> Float[Tensor, "*batch n_features"]:
    """Of each feature the lowest cosine with a feature of another set: −1 where one is antipodal to it."""
    own = mates(W.shape[-1], n_sets) | torch.eye(W.shape[-1], dtype=torch.bool)
    return cosines(W).masked_fill(own, torch.inf).amin(-1)


def collapsed(W: Float[Tensor, "*batch n_hidden n_features"], *, n_sets: int) -> Float[Tensor, "*batch n_sets"]:
    """The lowest cosine within each set: 1 where its features share one direction, so that only their sum is represented."""
    size = W.shape[-1] // n_sets
    blocks = cosines(W).unflatten(-1, (n_sets, size)).unflatten(-3, (n_sets, size))
    return torch.stack([blocks[..., k, :, k, :].amin((-2, -1)) for k in range(n_sets)], -1)
