"""SAEs with known weights."""

import torch
from torch import Tensor

from crux.sae.architectures.relu import ReluSAE


def random_sae(*, d_model: int, n_latents: int, seed: int, d_out: int | None = None) -> ReluSAE:
    generator = torch.Generator().manual_seed(seed)
    return ReluSAE(
        d_model=d_model, n_latents=n_latents, init="paper", init_norm=1.0, subtract_b_dec=False, generator=generator,
        d_out=d_out,
    )  # fmt: skip


def relu_sae(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> ReluSAE:
    sae = random_sae(d_model=len(W_enc), n_latents=len(b_enc), seed=0, d_out=len(b_dec))
    with torch.no_grad():
        for parameter, value in zip(
            (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec), (W_enc, b_enc, W_dec, b_dec), strict=True
        ):
            parameter.copy_(value)
    return sae


def scaling_sae(scale: float, *, d_model: int) -> ReluSAE:
    """Return an SAE with x̂ = scale · x, which has two latents per dimension, one per sign."""
    eye = torch.eye(d_model)
    both = torch.cat([eye, -eye])
    return relu_sae(scale * both.T, torch.zeros(2 * d_model), both, torch.zeros(d_model))
