"""Candidates for rules other than suffixes: a token within the last 8 or 32, classes of the last two tokens, the beginning of a text.

Suffixes cannot say that something stood a while ago, or that any of many tokens stands here.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int

from crux.sae.reading.conditions import Conditions, Kind, match_text
from crux.sae.reading.sparse_matrices import size_of
from crux.sae.reading.token_classes import TokenClasses

SPANS = (8, 32)
"""Numbers of last tokens, the current one included, in which a token may stand."""


class ContextFeatures(NamedTuple):
    """The candidates, with the tokens of a text at which each one holds."""

    conditions: Conditions
    matrix: scipy.sparse.csr_matrix
    """Ones, tokens × features."""
    counts: Int[np.ndarray, "features"]
    """Number of tokens at which each one holds."""
    starts: Int[np.ndarray, "features+1"]
    """The tokens of feature f are `tokens_of[starts[f] : starts[f + 1]]`, ascending."""
    tokens_of: Int[np.ndarray, "entries"]

    @property
    def n_features(self) -> int:
        """Number of features."""
        return len(self.counts)

    def rows(self, features: Int[np.ndarray, "chosen"]) -> scipy.sparse.csr_matrix:
        """Return the tokens of some features as a matrix of ones, chosen × tokens."""
        parts = [self.tokens_of[self.starts[f] : self.starts[f + 1]] for f in features]
        indptr = np.cumsum([0, *(len(part) for part in parts)])
        indices = np.concatenate([np.zeros(0, np.int32), *parts])
        return scipy.sparse.csr_matrix(
            (np.ones(len(indices)), indices, indptr), shape=(len(parts), size_of(self.matrix)[0])
        )


def context_features(
    windows: Int[np.ndarray, "windows context"],
    begins: Bool[np.ndarray, "tokens"],
    classes: TokenClasses,
    *,
    min_count: int,
) -> ContextFeatures:
    """Return the candidates that hold at `min_count` tokens or more, but not at all of them."""
    conditions = list_candidates(windows, classes, min_count=min_count)
    matrix = match_text(conditions, windows, begins, classes)
    count = np.bincount(matrix.indices, minlength=size_of(matrix)[1])
    by_feature = scipy.sparse.csc_matrix(matrix)
    return ContextFeatures(conditions, matrix, count, by_feature.indptr.astype(np.int64), by_feature.indices)


def list_candidates(
    windows: Int[np.ndarray, "windows context"], classes: TokenClasses, *, min_count: int
) -> Conditions:
    """Return the conditions to try: tokens that occur often enough within each span, classes at both places and their pairs, the start."""
    vocab, n_classes = classes.members.shape
    frequent = np.flatnonzero(np.bincount(windows.reshape(-1), minlength=vocab) >= min_count)
    table: list[tuple[int, int, int, int]] = []
    for span in SPANS:
        table += [(Kind.WITHIN, int(token), span, -1) for token in frequent]
    first_class = len(table)
    table += [(Kind.CLASS, c, lag, -1) for lag in (0, 1) for c in range(n_classes)]
    table += [
        (Kind.BOTH, first_class + now, first_class + n_classes + before, -1)
        for now in range(n_classes)
        for before in range(n_classes)
    ]
    table.append((Kind.START, -1, -1, -1))
    rows = np.array(table, np.int64)
    return Conditions(rows[:, 0], rows[:, 1:])


def split_gains(
    totals: Float[np.ndarray, "..."],
    counts: Float[np.ndarray, "..."],
    all_total: Float[np.ndarray, "..."] | float,
    all_count: Float[np.ndarray, "..."] | float,
    *,
    shrinkage: float,
    min_count: int,
) -> Float[np.ndarray, "..."]:
    """Return by how much the sum of squared errors falls if tokens are split in two, each part with its own mean, after shrinkage.

    With n₁ tokens of mean μ₁ and n₀ others of mean μ₀ among n of mean μ, this is n₁μ₁² + n₀μ₀² − nμ² = n₁ (μ₁ − μ)² n / n₀, times
    (n₁ / (n₁ + κ))² since the mean of few tokens is pulled towards μ. It is 0 if a part is empty, or n₁ is below `min_count`. The arrays
    are broadcast.
    """
    others = all_count - counts
    possible = (counts >= min_count) & (others > 0)
    n = np.where(possible, counts, 1.0)
    difference = totals / n - all_total / np.maximum(all_count, 1)
    gains = n * difference**2 * (n / (n + shrinkage)) ** 2 * (all_count / np.where(possible, others, 1.0))
    return np.where(possible, gains, 0.0)
