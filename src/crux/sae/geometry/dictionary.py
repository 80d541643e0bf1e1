"""The directions of an SAE's alive latents, as they are compared with those of other SAEs."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.sae import SAE
from crux.sae.geometry.nearest import normalise_rows


class Dictionary(NamedTuple):
    """Unit directions of the alive latents of an SAE. Dead latents are left out: they stay near their random initial directions."""

    decoder: Float[Tensor, "alive d_out"]
    """Decoder directions, unit rows."""
    encoder: Float[Tensor, "alive d_model"]
    """Encoder directions, unit rows: the normalised columns of W_enc."""
    latents: Int[np.ndarray, "alive"]
    """The index of each row in the SAE."""
    n_latents: int
    """Number of latents of the SAE, dead ones included."""


@torch.no_grad()
def read_dictionary(sae: SAE, *, alive: Bool[np.ndarray, "n_latents"]) -> Dictionary:
    """Return the directions of the alive latents.

    Args:
        alive: whether each latent fires on the tokens in question, such as `codes.firings() > 0`.

    Raises:
        UserError: if no latent is alive, or an alive latent has no direction.
    """
    if not alive.any():
        raise UserError("no latent of the SAE fires on this text, so there are no directions to compare")
    latents = np.flatnonzero(alive)
    chosen = torch.from_numpy(latents)
    decoder = normalise_rows(sae.dictionary().detach().cpu()[chosen])
    encoder = normalise_rows(sae.W_enc.detach().cpu().T[chosen])
    return Dictionary(decoder, encoder, latents, sae.n_latents)
