"""The page of a reading: all latents with everything that was found out about them, and those of a second SAE next to them."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from crux.sae.architectures.site import Site
from crux.sae.figures.features_page import render_features_page
from crux.sae.figures.features_page_data import (
    NO_TOKEN,
    FeaturesPage,
    MatchedPairs,
    PageColumn,
    PageContexts,
    SaeFeatures,
    TokenEffects,
    make_column,
)
from crux.sae.figures.features_page_texts import mark_joined
from crux.sae.reading.ce_by_token import add_ce_changes
from crux.sae.reading.harvest import ReadText
from crux.sae.reading.near_misses import add_near_misses
from crux.sae.reading.page_limits import choose_limits
from crux.sae.reading.rules import Rules
from crux.sae.reading.rules_on_page import page_rules
from crux.sae.reading.section import OtherSae, Reading
from crux.sae.reading.text_page import describe_text_features
from crux.subjects.subject import Subject

COLUMNS = {
    "influence": "influence", "influence_percentile": "influence_percentile", "strength": "strength", "ceiling_rho": "ceiling",
    "code_p99": "p99",
}  # fmt: skip
"""Columns of features.parquet → columns of the page that do not depend on the number of rules."""

FIRST = ("density", "rho10", "rho10_percentile", "influence", "influence_percentile", "strength", "ap10", "ceiling")
"""The first columns of the list, in their order; the others follow."""


PARTNERS = (
    "one to one by cosine; pairs whose cosine is within the reach of random directions (99 %) are not shown as pairs"
)


def render_reading_page(
    reading: Reading,
    features: pd.DataFrame,
    rules: Mapping[int, Rules],
    *,
    title: str,
    facts: Mapping[str, str],
    n_rules: int,
    effects_unit: str,
    other: OtherSae | None,
    name: str = "SAE",
) -> str:
    """Return the HTML of the page; it needs the subject's tokenizer.

    Args:
        features: one row per latent (features.parquet).
        rules: of all latents, by their number per latent.
        facts: name → value, shown under the title.
        effects_unit: what the measured effects on tokens are.
        other: a second SAE of the same subject, whose matched latents are in the column `matched_latent`.
        name: a short name of the SAE.
    """
    assert reading.texts is not None
    latents = np.arange(reading.n_latents)
    limits = choose_limits(len(latents))
    first = _describe(
        reading.subject, reading.site, reading.harvest.held_out, name=name, reading=reading, seed=reading.seed
    )
    first = first._replace(
        contexts=_explain_contexts(reading, first, features, rules[n_rules]),
        columns=_order([*first.columns, *_columns(features, n_rules=n_rules)]),
        rules=page_rules(rules[n_rules], latents, n_rules=limits.rules),
        measured=_measured(features, n_top=limits.measured, unit=effects_unit),
        explanations=list(features["llm_explanation"].fillna("")) if "llm_explanation" in features else None,
    )
    page = FeaturesPage(title, facts, first)
    if other is not None:
        second = _describe(
            reading.subject, other.site, other.harvest.held_out, name=other.name, reading=reading, seed=reading.seed
        )
        page = page._replace(second=second, pairs=_pairs(features), facts={**facts, "partners": PARTNERS})
    return render_features_page(page, read_tokens=reading.texts)


def _explain_contexts(reading: Reading, sae: SaeFeatures, features: pd.DataFrame, rules: Rules) -> PageContexts:
    """Return the contexts with those in which the rules are wrong and, for latents with measured effects, the cost of ablation."""
    assert sae.contexts is not None
    contexts, text = sae.contexts, reading.harvest.held_out
    if n := choose_limits(len(sae.latents)).near_misses:
        joined = mark_joined(text.windows, reading.texts) if reading.texts is not None else None
        contexts = add_near_misses(contexts, text, rules, sae.latents, n=n, joined=joined)
    if "promoted_tokens" in features:
        measured = np.flatnonzero([isinstance(tokens, np.ndarray | list) for tokens in features["promoted_tokens"]])
        site = reading.site
        contexts = add_ce_changes(
            contexts, reading.subject, text, sae.latents, rows=measured, hook=site.write, directions=site.sae.dictionary(),
            batch=reading.batch,
        )  # fmt: skip
    return contexts


def _describe(subject: Subject, site: Site, text: ReadText, *, name: str, reading: Reading, seed: int) -> SaeFeatures:
    assert reading.texts is not None
    directions = subject.map_to_residual(site.write, site.sae.dictionary().detach())
    return describe_text_features(
        text, name=name, latents=np.arange(site.sae.n_latents), directions=directions, unembed=subject.unembed,
        read_tokens=reading.texts, seed=seed,
    )  # fmt: skip


def _columns(features: pd.DataFrame, *, n_rules: int) -> list[PageColumn]:
    """Return the columns of the page that are known."""
    names = {
        **COLUMNS,
        f"rho@{n_rules}": "rho10",
        f"ap@{n_rules}": "ap10",
        f"rho@{n_rules}_percentile": "rho10_percentile",
    }
    found = []
    for name, key in names.items():
        if name in features:
            column = make_column(key, features[name].to_numpy(np.float64, na_value=np.nan))
            if n_rules != 10:  # the standard headings are those of ten rules
                label, note = (
                    column.label.replace("@10", f"@{n_rules}"),
                    column.note.replace("10 rules", f"{n_rules} rules"),
                )
                column = column._replace(label=label, note=note)
            found.append(column)
    return found


def _order(columns: list[PageColumn]) -> list[PageColumn]:
    return sorted(columns, key=lambda column: FIRST.index(column.key) if column.key in FIRST else len(FIRST))


def _measured(features: pd.DataFrame, *, n_top: int, unit: str) -> TokenEffects | None:
    """Return the measured effects; latents without them have no tokens."""
    if "promoted_tokens" not in features:
        return None

    def stack(side: str, part: str) -> np.ndarray:
        return _stack(list(features[f"{side}_{part}"]), n_top=n_top, fill=NO_TOKEN if part == "tokens" else np.nan)

    return TokenEffects(
        stack("promoted", "tokens").astype(np.int64), stack("promoted", "effects"), stack("promoted", "errors"),
        stack("suppressed", "tokens").astype(np.int64), stack("suppressed", "effects"), stack("suppressed", "errors"), unit,
    )  # fmt: skip


def _stack(lists: Sequence[object], *, n_top: int, fill: float) -> np.ndarray:
    found = np.full((len(lists), n_top), fill, np.float64)
    for i, values in enumerate(lists):
        if isinstance(values, np.ndarray | list):
            found[i, : len(values)] = values[:n_top]
    return found


def _pairs(features: pd.DataFrame) -> MatchedPairs:
    """Return the matched latents of both SAEs, without those that are less similar than random directions are to their nearest ones.

    The matching pairs all latents that fire, however different they are.
    """
    partners, cosines = (
        features[name].to_numpy(np.float64, na_value=np.nan) for name in ("matched_latent", "matched_cosine")
    )
    similar = ~features["matched_at_chance"].to_numpy(bool, na_value=False)
    first = np.flatnonzero((partners >= 0) & similar)
    return MatchedPairs(first, partners[first].astype(np.int64), cosines[first], None)
