"""The evaluation of an SAE on a toy model: what it keeps of the hidden layer, of the output, and of the true features."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from crux.sae.architectures.sae import SAE
from crux.toy.features import Purpose
from crux.toy.geometry.recovery import Recovery, recovery
from crux.toy.subject import ToySubject


class ToyEvaluation(NamedTuple):
    """How good an SAE is."""

    metrics: dict[str, float]
    """Flat names, without `final/`."""
    densities: Float[Tensor, "n_latents"]
    """Share of the samples on which each latent fires."""
    recovery: Recovery


@torch.no_grad()
def evaluate_on_toy(subject: ToySubject, sae: SAE, *, n_samples: int) -> ToyEvaluation:
    """Evaluate a (folded) SAE on fresh data.

    l0, mse, explained_variance    as for language models; over all samples
    cosine, norm_ratio             means over samples whose hidden activation is not zero
    output_mse                     between the outputs with and without the SAE, mean over samples and outputs
    output_explained_variance      of the same
    loss_clean, loss_spliced       the network's own loss, summed over features
    loss_increase                  loss_spliced − loss_clean; positive is worse
    alive_heldout_<N>              latents that fired
    mean_max_cosine, recovered, latents_mean_max_cosine   see `recovery`; over latents that fired
    """
    (x,) = subject.features(batch=n_samples, n_batches=1, seed=0, purpose=Purpose.held_out)[0]
    h = subject.hidden(x)
    codes = sae.encode(h)
    fires = codes.c != 0
    h_hat = sae.decode(codes)
    clean, spliced = subject.output(h), subject.output(h_hat)
    there = h.norm(dim=1) > 0
    alive = fires.any(0)
    found = recovery(subject.directions, sae.dictionary()[alive])
    loss_clean, loss_spliced = float(subject.error(clean, x)), float(subject.error(spliced, x))
    metrics = {
        "l0": float(fires.sum(1).float().mean()),
        "mse": float((h_hat - h).square().mean()),
        "explained_variance": explained_variance(h_hat, h),
        "cosine": float(F.cosine_similarity(h_hat[there], h[there], dim=1).mean()),
        "norm_ratio": float((h_hat[there].norm(dim=1) / h[there].norm(dim=1)).mean()),
        "output_mse": float((spliced - clean).square().mean()),
        "output_explained_variance": explained_variance(spliced, clean),
        "loss_clean": loss_clean,
        "loss_spliced": loss_spliced,
        "loss_increase": loss_spliced - loss_clean,
        f"alive_heldout_{n_samples}": float(alive.sum()),
        f"alive_heldout_{n_samples}_frac": float(alive.float().mean()),
        "mean_max_cosine": found.mean_max_cosine,
        "recovered": found.recovered,
        "latents_mean_max_cosine": found.latents_mean_max_cosine,
    }
    return ToyEvaluation(metrics, fires.float().mean(0), found)


def explained_variance(guess: Float[Tensor, "n d"], truth: Float[Tensor, "n d"]) -> float:
    """Return 1 − Σ‖x−x̂‖² / Σ‖x−mean‖²."""
    guess, truth = guess.double(), truth.double()
    return 1 - float((truth - guess).square().sum() / (truth - truth.mean(0)).square().sum())
