"""What a page of latents holds of one SAE: an index of all latents, which is read when the page opens, and chunks of a few latents.

The index has the numbers by which the list is sorted and the tokens that are searched; a chunk has what is shown of a latent.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from crux.sae.figures.features_page_data import PageContexts, SaeFeatures, TokenEffects
from crux.sae.figures.features_page_store import PlacedContexts
from crux.sae.figures.features_page_texts import Pieces
from crux.sae.figures.packed_arrays import ArrayTypes

ROWS_PER_CHUNK = 64


class NumberedRules(NamedTuple):
    """The rules of all latents, one after the other, as pieces."""

    per_row: Int[np.ndarray, "rows"]
    """Number of rules of each latent."""
    lengths: Int[np.ndarray, "rules"]
    """Number of parts of each rule."""
    parts: Int[np.ndarray, "parts"]
    """Pieces."""


class NumberedFeatures(NamedTuple):
    """The features of an SAE with the numbers of all pieces in place of tokens; 0 is no token, and p + 1 is piece p."""

    sae: SaeFeatures
    placed: PlacedContexts | None
    rules: NumberedRules | None
    effects: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """`measured` and `lens` → promoted and suppressed tokens, rows × top."""


def number_features(sae: SaeFeatures, placed: PlacedContexts | None, pieces: Pieces) -> NumberedFeatures:
    """Return the features of an SAE with numbers of pieces in place of tokens."""
    effects = {
        name: (_number_tokens(found.promoted, pieces), _number_tokens(found.suppressed, pieces))
        for name, found in _effects(sae).items()
    }
    return NumberedFeatures(sae, placed, _number_rules(sae, pieces), effects)


def index_arrays(features: NumberedFeatures) -> tuple[dict[str, np.ndarray], ArrayTypes]:
    """Return the arrays of the index, and their types."""
    sae, rules = features.sae, features.rules
    arrays: dict[str, tuple[np.ndarray, str]] = {"latents": (sae.latents, "u4")}
    for column in sae.columns:
        arrays[f"column/{column.key}"] = column.values, "f12"
    if rules is not None:
        arrays["rules"] = rules.per_row, "u1"
        arrays["rule_lengths"] = rules.lengths, "u1"
        arrays["rule_parts"] = rules.parts + 1, "u4"
    for name, (promoted, _) in features.effects.items():
        arrays[f"{name}/promoted"] = promoted, "u4"
    return {k: a for k, (a, _) in arrays.items()}, [(k, t) for k, (_, t) in arrays.items()]


def chunk_types(features: NumberedFeatures) -> ArrayTypes:
    """Return the names and types of the arrays of every chunk."""
    types = [(name, kind) for name, (_, kind) in _cut(features, 0, 0).items()]
    return types


def chunk_arrays(features: NumberedFeatures) -> Iterator[dict[str, np.ndarray]]:
    """Yield the arrays of each chunk."""
    for first in range(0, len(features.sae.latents), ROWS_PER_CHUNK):
        cut = _cut(features, first, min(first + ROWS_PER_CHUNK, len(features.sae.latents)))
        yield {name: array for name, (array, _) in cut.items()}


def _cut(features: NumberedFeatures, first: int, last: int) -> dict[str, tuple[np.ndarray, str]]:
    """Return the arrays of the rows `first` to `last` − 1 with their types."""
    sae, arrays = features.sae, dict[str, tuple[np.ndarray, str]]()
    if sae.contexts is not None and features.placed is not None:
        arrays |= _cut_contexts(sae.contexts, features.placed, first, last)
    if sae.histograms is not None:
        arrays["histograms"] = sae.histograms[first:last], "u4"
    if sae.rules is not None:
        shown = [rule for rules in sae.rules[first:last] for rule in rules]
        arrays["rule_means"] = np.array([rule.mean for rule in shown], np.float64), "f7"
        arrays["rule_adds"] = np.array([rule.adds for rule in shown], np.int64), "u1"
        arrays["rule_counts"] = np.array([rule.n_tokens for rule in shown], np.int64), "u4"
        arrays["rule_shares"] = np.array([rule.share for rule in shown], np.float64), "f6"
    for name, found in _effects(sae).items():
        arrays[f"{name}/suppressed"] = features.effects[name][1][first:last], "u4"
        for side in ("promoted", "suppressed"):
            arrays[f"{name}/{side}_effects"] = getattr(found, f"{side}_effects")[first:last], "f7"
            if (errors := getattr(found, f"{side}_errors")) is not None:
                arrays[f"{name}/{side}_errors"] = errors[first:last], "f5"
    if sae.neighbours is not None:
        arrays["neighbours"] = sae.neighbours.latents[first:last] + 1, "u4"
        arrays["neighbour_cosines"] = sae.neighbours.cosines[first:last], "f7"
        if sae.neighbours.correlations is not None:
            arrays["neighbour_correlations"] = sae.neighbours.correlations[first:last], "f7"
    return arrays


def _cut_contexts(
    contexts: PageContexts, placed: PlacedContexts, first: int, last: int
) -> dict[str, tuple[np.ndarray, str]]:
    begin, end = contexts.offsets[first], contexts.offsets[last]
    before, within = contexts.lengths[:begin].sum(), contexts.lengths[begin:end].sum()
    arrays = {
        "maxima": (contexts.maxima[first:last], "f12"),
        "contexts": (np.diff(contexts.offsets[first : last + 1]), "u2"),
        "groups": (contexts.groups[begin:end], "u1"),
        "starts": (placed.starts[begin:end], "u4"),
        "lengths": (contexts.lengths[begin:end], "u2"),
        "peaks": (contexts.peaks[begin:end], "u2"),
        "codes": (contexts.codes[before : before + within], "u1"),
    }
    if contexts.predicted is not None:
        arrays["predicted"] = contexts.predicted[begin:end], "f7"
    if contexts.ce_known is not None and contexts.ce_changes is not None:
        known = contexts.ce_known * contexts.lengths  # number of tokens of each context whose change is known
        arrays["ce_known"] = contexts.ce_known[begin:end], "u1"
        arrays["ce_changes"] = contexts.ce_changes[known[:begin].sum() : known[:end].sum()], "f6"
    return arrays


def _effects(sae: SaeFeatures) -> dict[str, TokenEffects]:
    found = {"measured": sae.measured, "lens": sae.lens}
    return {name: effects for name, effects in found.items() if effects is not None}


def _number_tokens(tokens: Int[np.ndarray, "rows top"], pieces: Pieces) -> Int[np.ndarray, "rows top"]:
    known, inverse = np.unique(tokens, return_inverse=True)
    numbers = np.array([pieces.number_token(token) + 1 if token >= 0 else 0 for token in known.tolist()], np.int64)
    return numbers[inverse.reshape(tokens.shape)] if tokens.size else tokens.astype(np.int64)


def _number_rules(sae: SaeFeatures, pieces: Pieces) -> NumberedRules | None:
    if sae.rules is None:
        return None
    parts = [
        pieces.number_words(part) if isinstance(part, str) else pieces.number_token(part)
        for rules in sae.rules
        for rule in rules
        for part in rule.parts
    ]
    lengths = [len(rule.parts) for rules in sae.rules for rule in rules]
    per_row = [len(rules) for rules in sae.rules]
    return NumberedRules(np.array(per_row, np.int64), np.array(lengths, np.int64), np.array(parts, np.int64))
