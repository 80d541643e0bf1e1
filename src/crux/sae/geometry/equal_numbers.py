"""Similarities within a dictionary at an equal number of latents: more latents are closer to each other by chance alone."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.config.progress import track
from crux.sae.geometry.nearest import find_nearest

DRAWS = 20


def find_within_at(
    decoder: Float[Tensor, "alive d"], *, n: int, seed: int, draws: int = DRAWS
) -> Float[np.ndarray, "_drawn"]:
    """Return each latent's largest cosine with another one, as the mean over the random subsets of n latents that hold it.

    Latents that are in none of the subsets are left out. If n is the number of all latents, there is a single subset.

    Args:
        decoder: unit rows.
        n: number of latents, that of the smallest dictionary in a comparison.
        draws: number of subsets.

    Raises:
        UserError: if there are fewer than n latents.
    """
    if not 2 <= n <= len(decoder):
        raise UserError(f"{len(decoder)} latents have no subset of {n} with neighbours")
    if n == len(decoder):
        return find_nearest(decoder).cosines
    generator = torch.Generator().manual_seed(seed)
    subsets = [torch.randperm(len(decoder), generator=generator)[:n] for _ in range(draws)]
    total, drawn = np.zeros(len(decoder)), np.zeros(len(decoder))
    for subset in track(subsets, "comparing subsets of latents"):
        total[subset.numpy()] += find_nearest(decoder[subset]).cosines
        drawn[subset.numpy()] += 1
    return (total[drawn > 0] / drawn[drawn > 0]).astype(np.float32)
