"""Measure whether an SAE has recovered the true features of a toy model, by cosines between their directions and the dictionary."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from crux.config.errors import UserError

MIN_RECOVERED_COSINE = 0.9
"""A feature counts as recovered if its cosine with the nearest latent is above this value."""

MIN_LIVING_NORM = 0.1
"""A feature is living, that is represented, if its norm is above this share of the largest norm; only such features can be recovered."""


class Recovery(NamedTuple):
    """Agreement between an SAE's dictionary and the true features."""

    living: Bool[Tensor, "n_features"]
    cosine: Float[Tensor, "n_features"]
    """Cosine of each feature with the nearest latent's direction; 0 if there is no latent."""
    mean_max_cosine: float
    """Mean of `cosine` over living features."""
    recovered: float
    """Share of the living features with a cosine above `MIN_RECOVERED_COSINE`."""
    latents_mean_max_cosine: float
    """Cosine of each latent with the nearest living feature, mean over latents."""


def measure_recovery(directions: Float[Tensor, "n_features d"], dictionary: Float[Tensor, "n_latents d"]) -> Recovery:
    """Compare the true directions with a dictionary; the caller leaves out dead latents.

    Raises:
        UserError: if no feature is living.
    """
    norms = directions.norm(dim=1)
    living = norms > MIN_LIVING_NORM * norms.max()
    if not bool(living.any()):
        raise UserError("the toy model represents no feature")
    if len(dictionary) == 0:
        return Recovery(living, torch.zeros(len(directions)), 0.0, 0.0, 0.0)
    cosines = F.normalize(directions, dim=1) @ F.normalize(dictionary, dim=1).T
    nearest = cosines.amax(1)
    nearest_of_living = nearest[living]
    return Recovery(
        living=living,
        cosine=nearest,
        mean_max_cosine=float(nearest_of_living.mean()),
        recovered=float((nearest_of_living > MIN_RECOVERED_COSINE).float().mean()),
        latents_mean_max_cosine=float(cosines[living].amax(0).mean()),
    )
