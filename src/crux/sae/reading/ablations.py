"""Exact ablations of single latents, and the agreement of the second-order influence with them."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import spearmanr
from torch import Tensor

from crux.config.errors import UserError
from crux.config.progress import progress
from crux.sae.reading.influence import check_codes, iterate_firings
from crux.sae.reading.interventions import compare_tokens, run_chunks, run_pool
from crux.sae.reading.sparse_codes import SparseCodes
from crux.subjects.subject import Subject


class Ablations(NamedTuple):
    """The effects of ablating single latents, x' = x − c_i w_i wherever the latent fires; the SAE's error is kept."""

    latents: Int[np.ndarray, "n"]
    """Indices of the latents."""
    kl: Float[np.ndarray, "n"]
    """KL(clean ‖ ablated) in nats per token of text."""
    own_share: Float[np.ndarray, "n"]
    """Share of the summed KL at tokens on which the latent fires itself; the rest is at later ones. NaN if it never fires."""
    ce_increase: Float[np.ndarray, "n"]
    """CE(ablated) − CE(clean) in nats per predicted token; positive: ablation is harmful."""
    n_tokens: int


class InfluenceCheck(NamedTuple):
    """The agreement of an estimate with exact values, over the latents for which both are positive."""

    n: int
    """Number of latents that are compared."""
    n_left_out: int
    """Number of latents without effect in the estimate or in the ablations."""
    log_pearson: float
    """Pearson correlation of the logarithms."""
    spearman: float
    """Rank correlation."""
    median_ratio: float
    """Median of estimate / exact."""
    ratio_quantiles: tuple[float, float, float, float]
    """The 10, 25, 75 and 90 % quantiles of estimate / exact."""
    bias: float
    """Geometric mean of exact / estimate: the factor by which the estimates are too small on average."""


@torch.no_grad()
def ablate_latents(
    subject: Subject,
    windows: Int[np.ndarray, "windows context"],
    codes: SparseCodes,
    *,
    hook: str,
    directions: Float[Tensor, "n_latents d"],
    latents: Int[np.ndarray, "n"],
    batch: int,
    max_tokens: int = 8192,
) -> Ablations:
    """Ablate each of the given latents in a spliced pass of its own, over all windows in which it fires.

    Args:
        windows, codes, hook, directions: as for `measure_influence`, on the same tokens.
        batch: windows per clean pass; max_tokens: tokens per spliced pass.

    Raises:
        UserError: if the codes do not belong to the windows and directions.
    """
    check_codes(windows, codes, directions)
    w = directions.detach().to(subject.device, torch.float32)[torch.from_numpy(np.asarray(latents)).to(subject.device)]
    position_of = torch.full((codes.n_latents,), -1, device=subject.device)
    position_of[torch.from_numpy(np.asarray(latents)).to(subject.device)] = torch.arange(
        len(latents), device=subject.device
    )
    kl, own, ce = (torch.zeros(len(latents), dtype=torch.float64, device=subject.device) for _ in range(3))
    context = windows.shape[1]
    with progress("ablating single latents", total=len(windows)) as advance:
        for tokens, firings in iterate_firings(windows, codes, batch=batch, device=subject.device):
            pool = run_pool(subject, tokens, hook=hook, batch=batch)
            chosen = position_of[firings.latents]
            keep = chosen >= 0
            c = torch.zeros(
                len(latents), *tokens.shape, device=subject.device
            )  # codes: chosen latents × batch × context
            c.view(len(latents), -1)[chosen[keep], firings.tokens[keep]] = firings.values[keep]
            runs = (c != 0).any(-1).nonzero()  # pairs of a latent and a window in which it fires
            for part in run_chunks(len(runs), length=context, max_tokens=max_tokens):
                i, window = runs[part].T
                change = -c[i, window][..., None] * w[i][:, None]
                changed = pool.run(window, change.to(pool.x.dtype))
                effects = compare_tokens(pool.final[window], changed, tokens=tokens[window], unembed=subject.unembed)
                kl.index_add_(0, i, effects.kl.sum(1))
                own.index_add_(0, i, (effects.kl * (c[i, window] != 0)).sum(1))
                ce.index_add_(0, i, effects.ce_increase.double().sum(1))
            advance(len(tokens))
    own_share = torch.where(kl > 0, own / kl, torch.nan)
    n_predictions = windows.size - len(windows)
    return Ablations(
        np.asarray(latents), (kl / windows.size).cpu().numpy(), own_share.cpu().numpy(),
        (ce / n_predictions).cpu().numpy(), windows.size,
    )  # fmt: skip


def choose_for_ablation(
    firings: Int[np.ndarray, "n_latents"], *, n: int, min_firings: int
) -> Int[np.ndarray, "chosen"]:
    """Return up to n latents with at least `min_firings` firings, evenly spaced in the order of their density, sparsest first."""
    order = np.argsort(firings, kind="stable")
    order = order[firings[order] >= min_firings]
    return order[np.unique(np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(int))]


def check_influence(estimate: Float[np.ndarray, "n"], exact: Float[np.ndarray, "n"]) -> InfluenceCheck:
    """Compare estimated with exact KLs of the same latents on the same tokens.

    Raises:
        UserError: if less than three latents have an effect.
    """
    positive = (estimate > 0) & (exact > 0)
    if positive.sum() < 3:
        raise UserError(f"only {positive.sum()} of {len(exact)} ablated latents have an effect; at least 3 are needed")
    estimate, exact = estimate[positive], exact[positive]
    ratio = estimate / exact
    low, quarter, three_quarters, high = np.quantile(ratio, [0.1, 0.25, 0.75, 0.9]).tolist()
    return InfluenceCheck(
        n=int(positive.sum()), n_left_out=int((~positive).sum()),
        log_pearson=float(np.corrcoef(np.log(estimate), np.log(exact))[0, 1]),
        spearman=float(np.asarray(spearmanr(estimate, exact))[0]), median_ratio=float(np.median(ratio)),
        ratio_quantiles=(low, quarter, three_quarters, high), bias=float(np.exp(-np.log(ratio).mean())),
    )  # fmt: skip
