"""Meta-SAE: an SAE on the decoder directions of an SAE (Leask et al. 2502.04878; protocol of SAEBench's `meta_structure`).

If a few parts explain most directions, latents are composed of shared parts, as they are if features split. Directions in few
dimensions are explained partly by chance, so random dictionaries of the same size come with the result.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.config.progress import track
from crux.sae.architectures.batch_topk import BatchTopKSAE
from crux.sae.geometry.chance import draw_directions

WIDTH, K = 0.25, 4
"""Latents of the meta-SAE per latent of the SAE, and its mean number of latents per direction."""
STEPS, BATCH, LEARNING_RATE = 1500, 1024, 5e-4


class MetaStructure(NamedTuple):
    """The share of the variance of decoder directions that a meta-SAE explains: 1 − Σ‖w − ŵ‖²/Σ‖w − w̄‖²."""

    explained: float
    isotropic: float
    """The same for isotropic random directions."""
    shaped: float
    """The same for random directions with the covariance of the activations."""


def measure_meta_structure(
    decoder: Float[Tensor, "n d"], *, covariance: Float[Tensor, "d d"], seed: int, steps: int = STEPS
) -> MetaStructure:
    """Train a BatchTopK meta-SAE on unit decoder rows, and one on each kind of random directions.

    Args:
        covariance: that of the activations, for the second chance level.
        seed: of the initial weights, the batches and the random directions.
        steps: optimiser steps of 1,024 rows.

    Raises:
        UserError: if there are too few latents for the four parts of a direction.
    """
    random = draw_directions(len(decoder), covariance, seed=seed)
    return MetaStructure(*(explain_directions(rows, seed=seed, steps=steps) for rows in (decoder, *random)))


def explain_directions(rows: Float[Tensor, "n d"], *, seed: int, steps: int = STEPS) -> float:
    """Return the share of the variance of the rows that a meta-SAE with 0.25 n latents and 4 per row explains."""
    n, d = rows.shape
    width = int(WIDTH * n)
    if width < K:
        raise UserError(f"a meta-SAE needs {int(K / WIDTH)} latents or more, not {n}")
    generator = torch.Generator().manual_seed(seed)
    sae = BatchTopKSAE(
        d_model=d, n_latents=width, k=K, init="tied", init_norm=1.0, subtract_b_dec=True, generator=generator
    ).to(rows.device)
    sae.start_at(rows.mean(0), input_scale=1.0)
    optimiser = torch.optim.Adam(sae.parameters(), lr=LEARNING_RATE)
    with torch.enable_grad():
        for _ in track(range(steps), "training the meta-SAE"):
            batch = rows[torch.randint(n, (min(BATCH, n),), generator=generator).to(rows.device)]
            loss = (sae.decode(sae.encode(batch)) - batch).square().sum(1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():  # in training mode: the 4 n largest codes of all rows
        error = torch.cat([sae.decode(sae.encode(part)) - part for part in rows.split(BATCH)])
    return float(1 - error.double().square().sum() / (rows - rows.mean(0)).double().square().sum())
