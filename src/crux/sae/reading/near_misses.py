"""Contexts in which the rules of a latent are wrong: it is silent where they predict a code, or it fires where they predict little.

Contexts in which a latent fires cannot show what an explanation gets wrong: that it also fits tokens on which the latent is silent.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Int

from crux.config.progress import track
from crux.sae.figures.features_page_data import PageContexts
from crux.sae.reading.conditions import match_text
from crux.sae.reading.contexts import (
    AFTER_PEAK,
    BEFORE_PEAK,
    drop_duplicates,
    extend_contexts,
    hash_grams,
    quantise,
    spread_ranges,
)
from crux.sae.reading.harvest import ReadText
from crux.sae.reading.rules import Rules, predict_latents

LATENTS_PER_BLOCK = 256

SILENT, MISSED = "silent, although the rules predict a code", "fires most beyond what the rules predict"
"""Names of the two groups."""

CANDIDATES = 64
"""Number of tokens with the largest errors, for each context that is wanted, among which there are enough from different windows."""


def add_near_misses(
    contexts: PageContexts,
    text: ReadText,
    rules: Rules,
    latents: Int[np.ndarray, "rows"],
    *,
    n: int,
    joined: Bool[np.ndarray, "tokens"] | None = None,
    before: int = BEFORE_PEAK,
    after: int = AFTER_PEAK,
) -> PageContexts:
    """Return the contexts with two more groups for each latent that fires, and with the code that its rules predict on every peak.

    The groups have the silent tokens with the largest predicted codes, and the tokens whose code exceeds the predicted one most; within a
    group there is one per window and one per sequence of 8 tokens, as in `find_contexts`.

    Args:
        contexts: of `latents` in `text`, from `find_contexts`.
        rules: of all latents; they were fitted on another text.
        n: number of contexts of each group.
        joined, before, after: as for `find_contexts`.
    """
    width, hashes = text.windows.shape[1], hash_grams(text.windows)
    held = match_text(rules.conditions, text.windows, text.begins, rules.classes)
    by_latent = scipy.sparse.csc_matrix(text.codes.matrix())
    code, predicted = np.zeros(text.n_tokens), np.zeros(text.n_tokens)
    found, on_peaks = _Parts([], [], [], [], [], []), [np.zeros(0)]
    for first in track(range(0, len(latents), LATENTS_PER_BLOCK), "finding where rules are wrong"):
        block = latents[first : first + LATENTS_PER_BLOCK]
        above_floor = predict_latents(rules, held, block)
        for row, latent in enumerate(block.tolist(), start=first):
            fires, values = _get_column(by_latent, latent)
            holds, above = _get_column(above_floor, row - first)
            code[fires] = values
            predicted[:] = rules.floor[latent]
            predicted[holds] += above
            own = slice(contexts.offsets[row], contexts.offsets[row + 1])
            peaks = [contexts.starts[own] + contexts.peaks[own]]
            if len(fires):
                silent = holds[(code[holds] == 0) & (above > 0)]
                errors = predicted[silent], code[fires] - predicted[fires]
                for group, (tokens, error) in enumerate(zip((silent, fires), errors, strict=True)):
                    chosen = _find_largest(tokens, error, hashes, context=width, n=n)
                    starts, lengths = extend_contexts(
                        chosen.tolist(), context=width, before=before, after=after, joined=joined
                    )
                    inside = quantise(code[spread_ranges(starts, lengths)], float(contexts.maxima[row]))
                    found.add(row, len(contexts.group_names) + group, starts, lengths, chosen - starts, inside)
                    peaks.append(chosen)
            on_peaks.append(predicted[np.concatenate(peaks)])
            code[fires] = 0
    return _merge(contexts, found)._replace(predicted=np.concatenate(on_peaks))


class _Parts(NamedTuple):
    """Contexts group by group, as in `PageContexts`, with the row of each."""

    rows: list[np.ndarray]
    groups: list[np.ndarray]
    starts: list[np.ndarray]
    lengths: list[np.ndarray]
    peaks: list[np.ndarray]
    codes: list[np.ndarray]

    def add(
        self, row: int, group: int, starts: np.ndarray, lengths: np.ndarray, peaks: np.ndarray, codes: np.ndarray
    ) -> None:
        """Add the contexts of one group of one row."""
        parts = (np.full(len(starts), row), np.full(len(starts), group), starts, lengths, peaks, codes)
        for column, part in zip(self, parts, strict=True):
            column.append(part)


def _get_column(matrix: scipy.sparse.csc_matrix, column: int) -> tuple[np.ndarray, np.ndarray]:
    span = slice(matrix.indptr[column], matrix.indptr[column + 1])
    return matrix.indices[span].astype(np.int64), matrix.data[span]


def _find_largest(tokens: np.ndarray, errors: np.ndarray, hashes: np.ndarray, *, context: int, n: int) -> np.ndarray:
    """Return the tokens with the n largest errors, largest first and without duplicates, among those with an error above 0."""
    tokens, errors = tokens[errors > 0], errors[errors > 0]
    if len(errors) > (size := CANDIDATES * n):  # sorting all would take longer than the rest
        tokens, errors = (part[errors >= np.partition(errors, -size)[-size]] for part in (tokens, errors))
    ranked = tokens[np.argsort(-errors, kind="stable")]
    return ranked[drop_duplicates(ranked, np.arange(len(ranked)), hashes, context=context, n=n)]


def _merge(contexts: PageContexts, added: _Parts) -> PageContexts:
    """Return the contexts with others after those of the same row."""
    n_rows = len(contexts.maxima)
    old = np.repeat(np.arange(n_rows), np.diff(contexts.offsets))
    rows = np.concatenate([old, *added.rows]).astype(np.int64)
    order = np.argsort(rows, kind="stable")

    def join(name: str) -> np.ndarray:
        return np.concatenate([getattr(contexts, name), *getattr(added, name)]).astype(np.int64)[order]

    lengths = np.concatenate([contexts.lengths, *added.lengths]).astype(np.int64)
    begins = np.cumsum(lengths) - lengths
    codes = np.concatenate([contexts.codes, *added.codes]).astype(np.uint8)
    return contexts._replace(
        offsets=np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_rows))]).astype(np.int64),
        groups=join("groups"), starts=join("starts"), lengths=lengths[order], peaks=join("peaks"),
        codes=codes[spread_ranges(begins[order], lengths[order])], group_names=(*contexts.group_names, SILENT, MISSED),
    )  # fmt: skip
