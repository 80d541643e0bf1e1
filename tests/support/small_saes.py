"""ReLU SAEs with random weights, with given weights, and with a known function."""

import torch
from torch import Tensor

from crux.sae.architectures.relu import ReluSAE


def make_random_sae(*, d_model: int, n_latents: int, seed: int, d_out: int | None = None) -> ReluSAE:
    """Return a ReLU SAE with random weights."""
    generator = torch.Generator().manual_seed(seed)
    return ReluSAE(
        d_model=d_model, n_latents=n_latents, init="paper", init_norm=1.0, subtract_b_dec=False, generator=generator,
        d_out=d_out,
    )  # fmt: skip


def make_relu_sae(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> ReluSAE:
    """Return a ReLU SAE with these weights."""
    sae = make_random_sae(d_model=len(W_enc), n_latents=len(b_enc), seed=0, d_out=len(b_dec))
    with torch.no_grad():
        for parameter, value in zip(
            (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec), (W_enc, b_enc, W_dec, b_dec), strict=True
        ):
            parameter.copy_(value)
    return sae


def make_scaling_sae(scale: float, *, d_model: int) -> ReluSAE:
    """Return an SAE with x̂ = scale · x, which has two latents per dimension, one per sign."""
    eye = torch.eye(d_model)
    signed = torch.cat([eye, -eye])
    return make_relu_sae(scale * signed.T, torch.zeros(2 * d_model), signed, torch.zeros(d_model))
