"""Evaluate an SAE on a toy model: its reconstruction of the hidden layer, the output that results, and the true features it recovers."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from crux.sae.architectures.sae import SAE
from crux.toy.features import Purpose
from crux.toy.geometry.recovery import Recovery, measure_recovery
from crux.toy.subject import ToySubject


class ToyEvaluationResult(NamedTuple):
    """The metrics of an SAE on a toy model, with the per-latent and per-feature values behind them."""

    metrics: dict[str, float]
    """Metrics by name, without the prefix `final/`."""
    densities: Float[Tensor, "n_latents"]
    """Share of the samples on which each latent fires."""
    recovery: Recovery


@torch.no_grad()
def evaluate_on_toy(subject: ToySubject, sae: SAE, *, n_samples: int) -> ToyEvaluationResult:
    """Evaluate a (folded) SAE on fresh data.

    l0, mse, explained_variance    as for language models; over all samples
    cosine, norm_ratio             means over samples whose hidden activation is not zero
    output_mse                     between the outputs with and without the SAE, mean over samples and outputs
    output_explained_variance      of the output with the SAE, relative to the output without it
    loss_clean, loss_spliced       the network's loss without and with the SAE, summed over features
    loss_increase                  loss_spliced − loss_clean; positive is worse
    alive_heldout_<N>              number of latents that fired on N samples
    mean_max_cosine, recovered, latents_mean_max_cosine   see `Recovery`; over latents that fired
    """
    (x,) = subject.features(batch=n_samples, n_batches=1, seed=0, purpose=Purpose.held_out)[0]
    h = subject.hidden(x)
    codes = sae.encode(h)
    fires = codes.c != 0
    h_hat = sae.decode(codes)
    clean, spliced = subject.output(h), subject.output(h_hat)
    nonzero = h.norm(dim=1) > 0
    alive = fires.any(0)
    recovery = measure_recovery(subject.directions, sae.dictionary()[alive])
    loss_clean, loss_spliced = float(subject.loss(clean, x)), float(subject.loss(spliced, x))
    metrics = {
        "l0": float(fires.sum(1).float().mean()),
        "mse": float((h_hat - h).square().mean()),
        "explained_variance": explained_variance(h_hat, h),
        "cosine": float(F.cosine_similarity(h_hat[nonzero], h[nonzero], dim=1).mean()),
        "norm_ratio": float((h_hat[nonzero].norm(dim=1) / h[nonzero].norm(dim=1)).mean()),
        "output_mse": float((spliced - clean).square().mean()),
        "output_explained_variance": explained_variance(spliced, clean),
        "loss_clean": loss_clean,
        "loss_spliced": loss_spliced,
        "loss_increase": loss_spliced - loss_clean,
        f"alive_heldout_{n_samples}": float(alive.sum()),
        f"alive_heldout_{n_samples}_frac": float(alive.float().mean()),
        "mean_max_cosine": recovery.mean_max_cosine,
        "recovered": recovery.recovered,
        "latents_mean_max_cosine": recovery.latents_mean_max_cosine,
    }
    return ToyEvaluationResult(metrics, fires.float().mean(0), recovery)


def explained_variance(x_hat: Float[Tensor, "n d"], x: Float[Tensor, "n d"]) -> float:
    """Return 1 − Σ‖x−x̂‖² / Σ‖x−mean‖², with sums and mean over all n samples."""
    x_hat, x = x_hat.double(), x.double()
    return 1 - float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())
