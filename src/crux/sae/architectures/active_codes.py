"""The codes that are not zero, without the zeros: what an encoder returns where most latents do not fire."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class ActiveCodes(NamedTuple):
    """The codes of a batch of tokens that are not zero, token by token."""

    counts: Int[Tensor, "tokens"]
    """Number of latents that fire on each token."""
    latents: Int[Tensor, "nnz"]
    """The latents that fire, ascending within a token."""
    values: Float[Tensor, "nnz"]
    """Their codes."""


def find_active(codes: Float[Tensor, "tokens n_latents"]) -> ActiveCodes:
    """Return the codes that are not zero."""
    tokens, latents = codes.nonzero(as_tuple=True)
    return ActiveCodes(torch.bincount(tokens, minlength=len(codes)), latents, codes[tokens, latents])


def keep_active(latents: Int[Tensor, "tokens k"], values: Float[Tensor, "tokens k"]) -> ActiveCodes:
    """Return the codes that are not zero, of k different latents per token in any order."""
    latents, order = latents.sort(-1)
    values = values.gather(-1, order)
    fires = values != 0
    return ActiveCodes(fires.sum(-1), latents[fires], values[fires])
