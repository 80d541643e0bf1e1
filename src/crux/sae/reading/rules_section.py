"""The part of a reading about what activates the latents: rules, their scores on held-out text, and controls with the same densities."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from crux.config.progress import track
from crux.sae.architectures.sae import SAE
from crux.sae.reading.control_saes import make_sae_control, make_untrained_sae, train_frozen_decoder_sae
from crux.sae.reading.controls import (
    Control,
    choose_latents,
    get_activations,
    make_direction_control,
    make_shifted_control,
)
from crux.sae.reading.directions import DirectionKind
from crux.sae.reading.fit_rules import fit_rule_lists
from crux.sae.reading.percentiles import compare_pairs, percentiles_at_density
from crux.sae.reading.rule_scores import RuleScores, score_rules
from crux.sae.reading.rule_texts import describe_rules
from crux.sae.reading.rules import Rules, first_latents
from crux.sae.reading.section import Reading, Section
from crux.sae.reading.sparse_codes import SparseCodes, join_codes
from crux.sae.reading.whole_tree import TreeScores, score_whole_tree

KINDS: tuple[DirectionKind, ...] = ("whitened", "isotropic", "covariance", "pca", "example", "coordinate")
"""The kinds of control directions in the table."""

PERCENTILE_CONTROL = "whitened"
"""The control among which each latent's percentile is given."""

MIN_FIT, MIN_HELD_OUT = 200, 50
"""Least numbers of firings of the latents that are compared with controls."""

FROZEN_STEPS, FROZEN_BATCH, FROZEN_LR = 300, 1024, 1e-3
"""Training of the SAE with a frozen random decoder."""

N_NEAREST = 20
"""Controls of similar density among which a latent's percentile is given."""


class Scored(NamedTuple):
    """The scores of one dictionary."""

    scores: RuleScores
    tree: TreeScores


def describe_activation(
    reading: Reading, *, sizes: Sequence[int], n_rules: int, n_controls: int
) -> tuple[Section, dict[int, Rules]]:
    """Return the rules and scores of all latents, next to those of controls, and the rules by their number per latent.

    Features: density and number of firings on both sides, largest and 99th percentile of the code, ρ and average precision at each size,
    detection and literal share, and percentiles among whitened random directions of similar density. Tables: `scores`, by dictionary;
    `controls`, the differences between latents and the controls that stand for them.
    """
    sizes = sorted({*sizes, n_rules})
    chosen = choose_latents(reading.harvest, n_controls, min_fit=MIN_FIT, min_held_out=MIN_HELD_OUT)
    controls = make_controls(reading, chosen) if n_controls and len(chosen) else []
    rules, (mine, *others) = fit_and_score(reading, sizes, controls)
    features = activation_features(reading, mine, n_rules=n_rules)
    features["rules"] = [
        [f"{rule.text} → {rule.value:.3g} ({rule.counts:,}×, {rule.share:.0%})" for rule in described]
        for described in (describe_rules(rules[n_rules], i, reading.names) for i in range(reading.n_latents))
    ]
    rows = [score_row("SAE, all scored latents", mine)]
    comparisons: list[dict[str, object]] = []
    at = mine.scores.sizes.index(n_rules)
    if controls:
        rows.append(score_row(f"SAE, {len(chosen)} latents", mine, chosen=chosen))
    for control, other in zip(controls, others, strict=True):
        rows.append(score_row(control.name, other))
        for name, ours, theirs in (
            (f"rho@{n_rules}", mine.scores.rho[at], other.scores.rho[at]),
            (f"ap@{n_rules}", mine.scores.ap[at], other.scores.ap[at]),
            ("rho, whole tree", mine.tree.ceiling_rho, other.tree.ceiling_rho),
        ):
            comparisons.append(
                {"control": control.name, "score": name, **compare_pairs(ours[chosen], theirs)._asdict()}
            )
        if control.name == PERCENTILE_CONTROL:
            for name, ours, theirs in (
                ("rho", mine.scores.rho, other.scores.rho),
                ("ap", mine.scores.ap, other.scores.ap),
            ):
                features[f"{name}@{n_rules}_percentile"] = percentiles_at_density(
                    ours[at], theirs[at], densities=mine.scores.density, control_densities=other.scores.density,
                    n_nearest=N_NEAREST,
                )  # fmt: skip
    tables = {"scores": pd.DataFrame(rows), "controls": pd.DataFrame(comparisons)}
    return Section(features, tables, activation_metrics(mine)), rules


def fit_and_score(
    reading: Reading, sizes: Sequence[int], controls: Sequence[Control]
) -> tuple[dict[int, Rules], list[Scored]]:
    """Return the rules of the SAE's latents, and the scores of the SAE and of each control.

    All codes are explained together, as if they were of one dictionary: much of the work does not depend on their number.
    """
    fit, held_out = reading.harvest.fit, reading.harvest.held_out
    fit_codes = join_codes([fit.codes, *(control.fit for control in controls)])
    held_out_codes = join_codes([held_out.codes, *(control.held_out for control in controls)])
    rules = fit_rule_lists(reading.fit_text, fit_codes, sizes=sizes)
    scores = score_rules(rules, fit, held_out, fit_codes=fit_codes, held_out_codes=held_out_codes)
    tree = score_whole_tree(reading.fit_text, held_out, fit_codes=fit_codes, held_out_codes=held_out_codes)
    ends = np.cumsum([reading.n_latents, *(control.fit.n_latents for control in controls)])
    parts = [slice(end - n, end) for end, n in zip(ends, np.diff([0, *ends]), strict=True)]
    found = [Scored(scores.select(part), tree.select(part)) for part in parts]
    return {size: first_latents(some, reading.n_latents) for size, some in rules.items()}, found


def activation_metrics(mine: Scored) -> dict[str, float]:
    """Return the means over the scored latents, and the numbers of scored and of unexplained ones."""
    metrics = {
        "scored_latents": float(mine.scores.scored.sum()), "unexplained_latents": float(mine.tree.unexplained.sum()),
    }  # fmt: skip
    if mine.scores.scored.any():
        for i, size in enumerate(mine.scores.sizes):
            metrics |= {
                f"rho@{size}": float(np.nanmean(mine.scores.rho[i])), f"ap@{size}": float(np.nanmean(mine.scores.ap[i])),
            }  # fmt: skip
        metrics["ceiling_rho"] = float(np.nanmean(mine.tree.ceiling_rho))
    return metrics


def activation_features(reading: Reading, mine: Scored, *, n_rules: int) -> pd.DataFrame:
    """Return the numbers of each latent about its firing and its rules."""
    scores, tree = mine
    fit, held_out = reading.harvest.fit.codes, reading.harvest.held_out.codes
    largest, high = code_quantiles(held_out)
    columns: dict[str, np.ndarray] = {
        "density": held_out.densities(), "firings_fit": fit.firings(), "firings_held_out": held_out.firings(),
        "max_code": largest, "code_p99": high,
    }  # fmt: skip
    for i, size in enumerate(scores.sizes):
        columns |= {f"rho@{size}": scores.rho[i], f"ap@{size}": scores.ap[i]}
    columns |= {
        f"detection@{n_rules}": scores.detection[scores.sizes.index(n_rules)],
        "ceiling_rho": tree.ceiling_rho, "literal_share": tree.literal_share, "unexplained": tree.unexplained,
    }  # fmt: skip
    return pd.DataFrame(columns, index=pd.RangeIndex(reading.n_latents, name="latent"))


def code_quantiles(codes: SparseCodes) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest code and the 99th percentile of the codes that are not zero, by latent; NaN for a latent that never fires."""
    by_latent = codes.matrix().tocsc()
    found = np.full((2, codes.n_latents), np.nan)
    for i in range(codes.n_latents):
        values = by_latent.data[by_latent.indptr[i] : by_latent.indptr[i + 1]]
        if len(values):
            found[:, i] = values.max(), np.quantile(values, 0.99)
    return found[0], found[1]


def score_row(name: str, scored: Scored, *, chosen: np.ndarray | None = None) -> Mapping[str, object]:
    """Return the means of the scores over latents as a row of the table."""
    scores, tree = scored
    mine = np.flatnonzero(scores.scored) if chosen is None else chosen
    mine = mine[scores.scored[mine]]
    row: dict[str, object] = {"dictionary": name, "latents": len(mine)}
    if len(mine) == 0:
        return row
    row["density"] = float(scores.density[mine].mean())
    for i, size in enumerate(scores.sizes):
        row |= {f"rho@{size}": float(scores.rho[i, mine].mean()), f"ap@{size}": float(scores.ap[i, mine].mean())}
    return row | {"rho, whole tree": float(np.nanmean(tree.ceiling_rho[mine]))}


def make_controls(reading: Reading, latents: np.ndarray) -> list[Control]:
    """Return all controls of some latents: directions, shifted codes, an untrained SAE, and one with a frozen random decoder."""
    harvest, seed = reading.harvest, reading.seed
    controls = [
        make_direction_control(kind, harvest, latents, moments=reading.moments, seed=seed)
        for kind in track(KINDS, "encoding control directions")
    ]
    sae: SAE = reading.site.sae
    l0 = len(harvest.fit.codes.values) / max(harvest.fit.n_tokens, 1)
    x = get_activations(harvest.fit)
    others: dict[str, SAE] = {}
    if l0 < reading.n_latents / 2:
        others["untrained SAE"] = make_untrained_sae(sae, x, l0=l0, mean=reading.moments.mean, seed=seed)
    if sae.d_out == sae.d_model:
        others["frozen random decoder"] = train_frozen_decoder_sae(
            x, moments=reading.moments, n_latents=reading.n_latents, k=max(1, round(l0)), steps=FROZEN_STEPS,
            batch=FROZEN_BATCH, lr=FROZEN_LR, seed=seed, device=reading.subject.device,
        )  # fmt: skip
    controls += [make_sae_control(name, other, harvest, latents, batch=FROZEN_BATCH) for name, other in others.items()]
    return [*controls, make_shifted_control(harvest, latents)]
