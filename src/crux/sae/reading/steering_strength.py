"""The strength of steering as a KL budget: the length α at which adding α w̄ to the activation changes the predictions by κ nats.

Norms of directions are not comparable between dictionaries, and the largest activation of a latent depends on how many tokens were
read. A budget in nats makes any directions comparable: α is chosen such that the mean over contexts of KL(clean ‖ steered) is κ.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crux.sae.losses.label import label_loss
from crux.sae.losses.readout import token_chunks
from crux.sae.reading.context_pairs import ContextPairs
from crux.sae.reading.interventions import ContextPool, log_probabilities, precise_kl, run_chunks

MAX_FACTOR = 4.0
"""Largest factor by which one step changes α."""

SLOPES = 0.5, 20.0
"""Bounds of d log KL / d log α in a secant step; it is 2 for small α."""


class Strengths(NamedTuple):
    """The lengths of some directions at a KL budget."""

    alpha: Float[np.ndarray, "n"]
    """The length, in units of the activation; NaN for a direction without effect."""
    kl: Float[np.ndarray, "n"]
    """The mean KL at this length, in nats, on the contexts on which it was chosen."""
    steps: Int[np.ndarray, "n"]
    """Number of secant steps after the first guess."""


def find_strengths(
    measure: Callable[[Int[np.ndarray, "some"], Float[np.ndarray, "some"]], Float[np.ndarray, "some"]],
    fisher: Float[np.ndarray, "n"],
    *,
    budget: float,
    max_steps: int = 8,
    tolerance: float = 0.03,
) -> Strengths:
    """Find the lengths at which the mean KL of each direction is `budget`.

    The first guess is α₀ = √(2κ / F_i), which is exact to second order. Then follow secant steps on log KL against log α, the first of them
    with slope 2, until the KL is within `tolerance` (relative) of the budget, at most `max_steps`. Nearly all directions need at most
    3; those whose KL sets in abruptly need more. A step that would leave the interval between a length that is too small and
    one that is too large is replaced by the secant through these two. The closest KL that was measured counts.

    Args:
        measure: returns the mean KLs of some directions, given by their indices, at the given lengths.
        fisher: F_i = w̄_iᵀ F w̄_i (`measure_fisher`).
    """
    n = len(fisher)
    best = Strengths(np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, int))
    open_ = np.flatnonzero(fisher > 0)
    log_alpha = np.full(n, np.nan)
    log_alpha[open_] = 0.5 * np.log(2 * budget / fisher[open_])
    slope, previous = np.full(n, 2.0), np.full((2, n), np.nan)  # log α and log KL / budget of the step before
    below, above = (
        np.full((2, n), np.nan),
        np.full((2, n), np.nan),
    )  # the largest α that is too small, and the smallest that is too large
    for step in range(max_steps + 1):
        kl = measure(open_, np.exp(log_alpha[open_]))
        closer = ~(np.abs(np.log(np.maximum(kl, 1e-30) / budget)) >= np.abs(np.log(best.kl[open_] / budget)))
        for array, values in zip(best, (np.exp(log_alpha[open_]), kl, np.full(len(kl), step)), strict=True):
            array[open_[closer]] = values[closer]
        best.steps[open_] = step
        kept = (np.abs(kl / budget - 1) > tolerance) & (kl > 0)
        open_, x, y = open_[kept], log_alpha[open_[kept]], np.log(kl[kept] / budget)
        if len(open_) == 0:
            break
        for ends, side in ((below, y < 0), (above, y > 0)):
            ends[:, open_[side]] = x[side], y[side]
        if step > 0:
            slope[open_] = np.clip((y - previous[1, open_]) / (x - previous[0, open_]), *SLOPES)
        previous[:, open_] = x, y
        guess = x + np.clip(-y / slope[open_], -math.log(MAX_FACTOR), math.log(MAX_FACTOR))
        (x0, y0), (x1, y1) = below[:, open_], above[:, open_]
        outside = (guess <= x0) | (guess >= x1)  # false without an interval, whose ends are NaN
        both = ~np.isnan(x0) & ~np.isnan(x1)
        log_alpha[open_] = np.where(outside & both, x0 - y0 * (x1 - x0) / (y1 - y0), guess)
    return best


def measure_fisher(
    pool: ContextPool, *, positions: Int[Tensor, "windows"], onward: bool, n_draws: int, batch: int, seed: int
) -> Float[Tensor, "d d"]:
    """Return the Fisher matrix F of adding a vector to the activation: the mean KL of adding v is ½ vᵀFv to second order.

    The vector is added at one position of each window, and the KL is that of the next-token distribution there; if `onward`, it is
    added from this position to the end of the window, and the KL is averaged over these positions. F = E[g gᵀ], with g the gradient
    of the label loss at these positions, summed over the positions to which the vector is added; labels are drawn `n_draws` times.
    """
    subject, hook = pool.subject, pool.hook
    generator = torch.Generator(subject.device).manual_seed(seed)
    W_U, b_U, softcap = subject.unembed
    d = pool.x.shape[-1]
    fisher, n_measured = torch.zeros(d, d, dtype=torch.float64, device=subject.device), 0
    for windows in torch.arange(len(pool.tokens), device=subject.device).split(batch):
        tokens = pool.tokens[windows]
        where = steered_tokens(positions[windows], length=tokens.shape[1], onward=onward)

        def loss(final: Tensor, tokens: Tensor = tokens, where: Tensor = where) -> Tensor:
            return label_loss(
                final[where][None], W_U, b_U=b_U, softcap=softcap, tokens=tokens[where][None], target="sampled",
                generator=generator,
            )  # fmt: skip

        for _ in range(n_draws):
            _, gradients = subject.clean_with_gradients(tokens, gradient_hooks=[hook], loss=loss)
            g = (gradients[hook].double() * where[..., None]).sum(1)
            fisher += g.T @ g
            n_measured += int(where.sum())
    return fisher / n_measured


def quadratic_forms(matrix: Float[Tensor, "d d"], directions: Float[Tensor, "n d"]) -> Float[np.ndarray, "n"]:
    """Return wᵀ F w for each direction w, in float64."""
    w = directions.to(matrix)
    return ((w @ matrix) * w).sum(1).cpu().numpy()


@torch.no_grad()
def measure_mean_kl(
    pool: ContextPool, pairs: ContextPairs, vectors: Float[Tensor, "n d"], *, onward: bool, max_tokens: int
) -> Float[Tensor, "n"]:
    """Return, for each vector, the mean over its contexts of KL(clean ‖ steered) in nats, in float64; NaN without contexts.

    The KL is that of the next-token distribution at the steered position or, if `onward`, the mean over the positions from there on.
    """
    length = pool.tokens.shape[1]
    total = torch.zeros(len(vectors), dtype=torch.float64, device=pool.x.device)
    for part in run_chunks(len(pairs.owners), length=length, max_tokens=max_tokens):
        owners, windows, positions = pairs.select(part)
        changed = pool.run_vectors(windows, positions=positions, vectors=vectors[owners], onward=onward)
        where = steered_tokens(positions, length=length, onward=onward)
        kl = mean_kl_of_runs(pool.final[windows], changed, where=where, pool=pool)
        total.index_add_(0, owners, kl)
    return total / pairs.counts(len(vectors))


def mean_kl_of_runs(
    clean: Float[Tensor, "runs length d_model"],
    changed: Float[Tensor, "runs length d_model"],
    *,
    where: Bool[Tensor, "runs length"],
    pool: ContextPool,
) -> Float[Tensor, "runs"]:
    """Return the mean KL(clean ‖ changed) of each run over the tokens in `where`, from final hidden states, in chunks of tokens."""
    runs, h, changed_h = where.nonzero()[:, 0], clean[where], changed[where]
    total = torch.zeros(len(where), dtype=torch.float64, device=where.device)
    unembed = pool.subject.unembed
    for part in token_chunks(len(h), len(unembed.W_U), h.device):
        kl = precise_kl(log_probabilities(h[part], unembed), log_probabilities(changed_h[part], unembed))
        total.index_add_(0, runs[part], kl)
    return total / where.sum(1)


def steered_tokens(positions: Int[Tensor, "runs"], *, length: int, onward: bool) -> Bool[Tensor, "runs length"]:
    """Return which tokens of each run are steered: the one at its position or, if `onward`, all from there to the end."""
    index = torch.arange(length, device=positions.device)
    return index >= positions[:, None] if onward else index == positions[:, None]
