"""The part of a reading about what activates the latents: rules, their scores on held-out text, and controls with the same densities."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from crux.config.progress import track
from crux.sae.architectures.sae import SAE
from crux.sae.reading.control_saes import make_sae_control, make_untrained_sae, train_frozen_decoder_sae
from crux.sae.reading.control_scores import (
    WITHOUT_LIMIT,
    ControlRow,
    DictionaryScores,
    compare_with_controls,
    describe_indistinct,
    find_percentiles,
    score_together,
)
from crux.sae.reading.controls import (
    Control,
    choose_latents,
    get_activations,
    make_direction_control,
    make_shifted_control,
)
from crux.sae.reading.directions import DirectionKind
from crux.sae.reading.rule_texts import describe_rules
from crux.sae.reading.rules import Rules
from crux.sae.reading.section import Reading, Section
from crux.sae.reading.sparse_codes import SparseCodes

KINDS: tuple[DirectionKind, ...] = ("whitened", "isotropic", "covariance", "pca", "example", "coordinate")
"""The kinds of control directions in the table."""

PERCENTILE_CONTROL = "whitened"
"""The control among which each latent's percentile is given."""

MIN_FIT, MIN_HELD_OUT = 200, 50
"""Least numbers of firings of the latents that are compared with controls."""

FROZEN_STEPS, FROZEN_BATCH, FROZEN_LR = 300, 1024, 1e-3
"""Training of the SAE with a frozen random decoder."""


def describe_activation(
    reading: Reading, *, sizes: Sequence[int], n_rules: int, n_controls: int
) -> tuple[Section, dict[int, Rules]]:
    """Return the rules and scores of all latents, next to those of controls, and the rules by their number per latent.

    Features: density and number of firings on both sides, largest and 99th percentile of the code, ρ and average precision at each size,
    detection and literal share, and percentiles among whitened random directions of similar density. Tables: `scores`, by dictionary;
    `controls`, the differences between latents and the controls that stand for them; `warnings`, about scores that do not differ.
    """
    sizes = sorted({*sizes, n_rules})
    chosen = choose_latents(reading.harvest, n_controls, min_fit=MIN_FIT, min_held_out=MIN_HELD_OUT)
    controls = make_controls(reading, chosen) if n_controls and len(chosen) else []
    rules, mine, others = score_together(reading.fit_text, reading.harvest, controls, sizes=sizes)
    features = activation_features(reading, mine, n_rules=n_rules)
    features["rules"] = [
        [f"{rule.text} → {rule.value:.3g} ({rule.counts:,}×, {rule.share:.0%})" for rule in described]
        for described in (describe_rules(rules[n_rules], i, reading.names) for i in range(reading.n_latents))
    ]
    rows = [score_row("SAE, all scored latents", mine)]
    rows += [score_row(f"SAE, {len(chosen)} latents", mine, chosen=chosen)] if controls else []
    rows += [score_row(name, scores) for name, scores in others.items()]
    comparisons = compare_with_controls(mine, others, stands_for=chosen)
    for score in ("rho", "ap") if PERCENTILE_CONTROL in others else ():
        features[f"{score}@{n_rules}_percentile"] = find_percentiles(
            mine, others[PERCENTILE_CONTROL], score=score, n_rules=n_rules
        )
    shown = [row for row in comparisons if row.score != "detection" and row.n_rules in (n_rules, WITHOUT_LIMIT)]
    tables = {
        "scores": pd.DataFrame(rows),
        "controls": pd.DataFrame([control_cells(row) for row in shown]),
        "warnings": pd.DataFrame({"warning": describe_indistinct(shown)}),
    }
    return Section(features, tables, activation_metrics(mine)), rules


def control_cells(row: ControlRow) -> dict[str, object]:
    """Return a row of the table of differences from controls."""
    limit = f"@{row.n_rules}" if row.n_rules else ", whole tree"
    return {"control": row.control, "score": row.score + limit, **row.comparison._asdict()}


def activation_metrics(mine: DictionaryScores) -> dict[str, float]:
    """Return the means over the scored latents, and the numbers of scored and of unexplained ones."""
    metrics = {
        "scored_latents": float(mine.rules.scored.sum()), "unexplained_latents": float(mine.tree.unexplained.sum()),
    }  # fmt: skip
    if mine.rules.scored.any():
        for i, size in enumerate(mine.rules.sizes):
            metrics |= {
                f"rho@{size}": float(np.nanmean(mine.rules.rho[i])), f"ap@{size}": float(np.nanmean(mine.rules.ap[i])),
            }  # fmt: skip
        metrics["ceiling_rho"] = float(np.nanmean(mine.tree.ceiling_rho))
    return metrics


def activation_features(reading: Reading, mine: DictionaryScores, *, n_rules: int) -> pd.DataFrame:
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


def score_row(name: str, scored: DictionaryScores, *, chosen: np.ndarray | None = None) -> Mapping[str, object]:
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
