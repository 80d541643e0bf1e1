"""Has an SAE found a toy model's true features? Cosines between the features' directions and the dictionary's."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from crux.config.errors import UserError

RECOVERED = 0.9
"""Cosine from which on a feature counts as recovered."""

LIVING = 0.1
"""A feature lives, and can be recovered, if its direction is longer than this share of the longest."""


class Recovery(NamedTuple):
    """How the dictionary and the truth fit."""

    living: Bool[Tensor, "n_features"]
    cosine: Float[Tensor, "n_features"]
    """Of each feature with the nearest latent's direction; 0 where there is no latent."""
    mean_max_cosine: float
    """Its mean over living features."""
    recovered: float
    """Share of the living features whose cosine is above `RECOVERED`."""
    latents_mean_max_cosine: float
    """The other way round: of each latent with the nearest living feature, mean over latents."""


def recovery(directions: Float[Tensor, "n_features d"], dictionary: Float[Tensor, "n_latents d"]) -> Recovery:
    """Compares the true directions with a dictionary's, whose dead latents are left out by the caller.

    Raises:
        UserError: where no feature lives.
    """
    norms = directions.norm(dim=1)
    living = norms > LIVING * norms.max()
    if not bool(living.any()):
        raise UserError("the toy model represents no feature")
    if len(dictionary) == 0:
        return Recovery(living, torch.zeros(len(directions)), 0.0, 0.0, 0.0)
    cosines = F.normalize(directions, dim=1) @ F.normalize(dictionary, dim=1).T
    nearest = cosines.amax(1)
    of_living = nearest[living]
    return Recovery(
        living=living,
        cosine=nearest,
        mean_max_cosine=float(of_living.mean()),
        recovered=float((of_living > RECOVERED).float().mean()),
        latents_mean_max_cosine=float(cosines[living].amax(0).mean()),
    )
