"""Steering at an equal KL budget: what latents and control directions do to the predictions when as many nats are spent on each.

The length α of each direction is chosen on some contexts (`find_strengths`); everything is measured on others. The protocol combines
the loss-matched comparison of SAE-TS with the consistency test of the g-SAE paper (Olmo et al. 2411.10397), without a judge. Latents and
controls are rows of one table: a steering claim about latents means little without them.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.config.progress import progress
from crux.sae.reading.context_pairs import ContextPairs, pair_with_all
from crux.sae.reading.interventions import ContextPool, log_probabilities, next_token_loss, run_chunks, run_pool
from crux.sae.reading.lens import lens_effects
from crux.sae.reading.prediction_effects import (
    centre_effects,
    correlate,
    measure_consistency,
    measure_mode_share,
    measure_top_overlap,
    split_kl,
)
from crux.sae.reading.steering_strength import (
    Strengths,
    find_strengths,
    mean_kl_of_runs,
    measure_fisher,
    measure_mean_kl,
    quadratic_forms,
    steered_tokens,
)
from crux.subjects.subject import Subject

COLUMNS = {
    "alpha": "length of the added vector at the budget, in units of the activation",
    "relative_alpha": "alpha / mean ‖x‖ at the steered position of the test contexts; lower: a more sensitive direction",
    "steps": "secant steps that the search for alpha took",
    "kl_fit": "mean KL on the contexts on which alpha was chosen, in nats",
    "kl": "mean KL on the test contexts, in nats",
    "asymmetry": "mean KL at −alpha / mean KL at alpha, on the test contexts",
    "consistency": "mean cosine of the centred change of log-probabilities in two contexts; 1: the same in all",
    "mode_share": "share of contexts whose most promoted token is the most common one",
    "lens_overlap": "share of the 20 most promoted tokens that the logit lens has among its 20",
    "lens_pearson": "Pearson correlation over tokens of the mean effect and the logit lens",
    "on_target": "share of the KL spent on moving probability to the tokens that were promoted most on the fit contexts",
    "within_target": "share of the KL spent among these tokens",
    "side_effect": "share of the KL spent among all other tokens",
    "ce_increase": "increase of the CE of the text from the steered position on, in nats per token",
    "novel_contexts": "number of test contexts in which the direction is silent and its score lies in the lower half",
    "novel_kl": "mean KL on the novel contexts, in nats",
    "novel_consistency": "consistency on the novel contexts",
    "novel_on_target": "on-target share on the novel contexts",
}
"""The columns of the table of `steer_directions` besides `kind`, `index`, `budget` and `onward`."""


class SteeringContexts(NamedTuple):
    """The contexts of a comparison: α is chosen on the fit contexts, and everything is measured on the test contexts."""

    fit: ContextPool
    test: ContextPool
    short: ContextPool
    """The test contexts up to the steered position, or all of them with `onward`: what the KL needs."""
    clean_loss: Float[Tensor, "n_test predicted"]
    """The clean cross-entropy of the text after the steered position of the test contexts, in nats."""
    position: int
    """The position from which, or at which, the activation is changed, the same in all contexts."""
    onward: bool
    """Whether all positions from there on are changed, instead of this one."""
    fisher: Float[Tensor, "d d"]
    """The Fisher matrix of the fit contexts, from which the search for α starts."""


def run_steering_contexts(
    subject: Subject,
    *,
    hook: str,
    fit: Int[Tensor, "_n_fit length"],
    test: Int[Tensor, "_n_test length"],
    position: int,
    onward: bool,
    n_draws: int,
    batch: int,
    seed: int,
) -> SteeringContexts:
    """Run the clean passes of the contexts, and measure the Fisher matrix of the steered positions from `n_draws` draws of labels.

    Args:
        fit, test: windows of tokens, from different documents.
        position: at least 1: position 0 has activations of its own. The tokens after it serve to measure the effect on the text.

    Raises:
        UserError: if the position is 0 or has no next token.
    """
    if not 1 <= position < fit.shape[1] - 1:
        raise UserError(f"steering at position {position}: it must be between 1 and {fit.shape[1] - 2}")
    end = fit.shape[1] if onward else position + 1  # later tokens do not matter for the KL at the position
    pool = run_pool(subject, fit[:, :end], hook=hook, batch=batch)
    test_pool = run_pool(subject, test, hook=hook, batch=batch)
    short = test_pool if onward else run_pool(subject, test[:, :end], hook=hook, batch=batch)
    clean_loss = next_token_loss(test_pool.final[:, position:], test_pool.tokens[:, position:], subject.unembed)
    positions = torch.full((len(fit),), position, device=subject.device)
    fisher = measure_fisher(pool, positions=positions, onward=onward, n_draws=n_draws, batch=batch, seed=seed)
    return SteeringContexts(pool, test_pool, short, clean_loss, position, onward, fisher)


@torch.no_grad()
def steer_directions(
    contexts: SteeringContexts,
    directions: Mapping[str, Float[Tensor, "_n d"]],
    *,
    budget: float,
    novel: Mapping[str, Bool[Tensor, "_n _n_test"]] | None = None,
    n_target: int = 20,
    max_tokens: int = 8192,
) -> pd.DataFrame:
    """Steer with each direction at a budget of `budget` nats; return a table with one row per direction, whose columns `COLUMNS` explains.

    The length α is such that the mean KL(clean ‖ steered) over the fit contexts is the budget; the KL is that of the next-token
    distribution at the steered position or, with `onward`, the mean over the positions from there on. The effects on the predictions
    are measured at the steered position, with `onward` at the last one. A direction without effect has no numbers (NaN).

    Args:
        directions: by kind, such as `latent` and `isotropic`; of any norm. Row i of a control stands for row i of the latents.
        novel: by kind, which test contexts are novel for each direction (`find_novel_contexts`); None: these columns are NaN.
        n_target: number of target tokens of the on-target share.
        max_tokens: tokens per spliced pass.
    """
    device = contexts.test.x.device
    tables = []
    with progress("steering", total=sum(len(rows) for rows in directions.values())) as advance:
        for kind, rows in directions.items():
            units = F.normalize(rows.to(device, torch.float32), dim=-1)
            strengths = _search(contexts, units, budget=budget, max_tokens=max_tokens)
            lens = lens_effects(contexts.test.subject, units, hook=contexts.test.hook)
            records = []
            for i, alpha in enumerate(strengths.alpha.tolist()):
                mask = None if novel is None or kind not in novel else novel[kind][i].to(device)
                record = {} if np.isnan(alpha) else _measure(
                    contexts, alpha * units[i], lens=lens[i], novel=mask, n_target=n_target, max_tokens=max_tokens
                )  # fmt: skip
                records.append({"kind": kind, "index": i, "budget": budget, "onward": contexts.onward} | record)
                advance()
            tables.append(_add_strengths(pd.DataFrame(records), strengths, contexts))
    leading = ["kind", "index", "budget", "onward"]
    return pd.concat(tables, ignore_index=True).reindex(columns=[*leading, *COLUMNS])


def find_novel_contexts(
    scores: Float[Tensor, "n contexts"], fires: Bool[Tensor, "n contexts"]
) -> Bool[Tensor, "n contexts"]:
    """Return in which contexts each direction is silent and has a score in the lower half of its scores.

    Scores are pre-activations of latents; for other directions, x·u.
    """
    return ~fires & (scores <= scores.median(1, keepdim=True).values)


def summarise_steering(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean and the standard error over directions of each column, by budget, variant and kind, with the number of directions."""
    groups = table.groupby(["budget", "onward", "kind"], sort=False)[list(COLUMNS)]
    parts = [pd.DataFrame(part) for part in (groups.mean(), groups.sem(), groups.count())]
    summary = pd.concat(parts, axis=1, keys=["mean", "standard_error", "n"])
    return pd.DataFrame(summary.swaplevel(axis=1)[list(COLUMNS)])


def _search(contexts: SteeringContexts, units: Tensor, *, budget: float, max_tokens: int) -> Strengths:
    """Find α of each unit direction on the fit contexts."""
    n_windows = len(contexts.fit.tokens)

    def measure(which: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        vectors = units[torch.from_numpy(which).to(units.device)] * torch.from_numpy(alpha).to(units)[:, None]
        pairs = pair_with_all(len(which), n_windows=n_windows, position=contexts.position, device=units.device)
        return (
            measure_mean_kl(contexts.fit, pairs, vectors, onward=contexts.onward, max_tokens=max_tokens).cpu().numpy()
        )

    return find_strengths(measure, quadratic_forms(contexts.fisher, units), budget=budget)


def _measure(
    contexts: SteeringContexts, vector: Tensor, *, lens: Tensor, novel: Tensor | None, n_target: int, max_tokens: int
) -> dict[str, float]:
    """Measure the effects of adding one vector, on the test contexts."""
    changed = _run(contexts, contexts.test, vector, max_tokens=max_tokens)
    log_p, log_q, kl = _predict(contexts, contexts.test, changed)
    fit_p, fit_q, _ = _predict(contexts, contexts.fit, _run(contexts, contexts.fit, vector, max_tokens=max_tokens))
    target = centre_effects(fit_p, fit_q).mean(0).topk(min(n_target, fit_p.shape[-1] - 1)).indices
    pairs = _pairs(contexts, contexts.short)
    negative = measure_mean_kl(contexts.short, pairs, -vector[None], onward=contexts.onward, max_tokens=max_tokens)
    later, tokens = changed[:, contexts.position :], contexts.test.tokens[:, contexts.position :]
    ce_increase = next_token_loss(later, tokens, contexts.test.subject.unembed) - contexts.clean_loss
    effects, parts = centre_effects(log_p, log_q), split_kl(log_p, log_q, target)
    total = parts.total.sum()
    record = {
        "kl": kl.mean(), "asymmetry": negative[0] / kl.mean(), "consistency": measure_consistency(effects),
        "mode_share": measure_mode_share(effects), "lens_overlap": measure_top_overlap(effects.mean(0), lens, n_top=20),
        "lens_pearson": correlate(effects.mean(0), lens), "on_target": parts.on_target.sum() / total,
        "within_target": parts.within_target.sum() / total, "side_effect": parts.side_effect.sum() / total,
        "ce_increase": ce_increase.mean(),
    }  # fmt: skip
    if novel is not None:
        record["novel_contexts"] = novel.sum()
        if novel.any():
            record["novel_kl"] = kl[novel].mean()
            record["novel_consistency"] = measure_consistency(effects[novel])
            record["novel_on_target"] = parts.on_target[novel].sum() / parts.total[novel].sum()
    return {name: float(value) for name, value in record.items()}


def _run(
    contexts: SteeringContexts, pool: ContextPool, vector: Tensor, *, max_tokens: int
) -> Float[Tensor, "windows length d_model"]:
    """Return the final hidden states of all windows of a pool after adding one vector."""
    pairs, changed = _pairs(contexts, pool), []
    for part in run_chunks(len(pairs.owners), length=pool.tokens.shape[1], max_tokens=max_tokens):
        _, windows, positions = pairs.select(part)
        vectors = vector.expand(len(windows), -1)
        changed.append(pool.run_vectors(windows, positions=positions, vectors=vectors, onward=contexts.onward))
    return torch.cat(changed)


def _predict(contexts: SteeringContexts, pool: ContextPool, changed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return clean and steered log-probabilities where effects are measured, and the KL of each context."""
    position = pool.tokens.shape[1] - 1 if contexts.onward else contexts.position
    positions = _pairs(contexts, pool).positions
    where = steered_tokens(positions, length=pool.tokens.shape[1], onward=contexts.onward)
    log_p, log_q = (log_probabilities(final[:, position], pool.subject.unembed) for final in (pool.final, changed))
    return log_p, log_q, mean_kl_of_runs(pool.final, changed, where=where, pool=pool)


def _pairs(contexts: SteeringContexts, pool: ContextPool) -> ContextPairs:
    """Return the pairs of one vector with every window of a pool."""
    return pair_with_all(1, n_windows=len(pool.tokens), position=contexts.position, device=pool.x.device)


def _add_strengths(table: pd.DataFrame, strengths: Strengths, contexts: SteeringContexts) -> pd.DataFrame:
    norm = float(contexts.test.x[:, contexts.position].float().norm(dim=-1).mean())
    return table.assign(
        alpha=strengths.alpha, relative_alpha=strengths.alpha / norm, steps=strengths.steps, kl_fit=strengths.kl
    )
