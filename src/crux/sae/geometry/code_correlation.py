"""Correlation of the codes of two SAEs on the same tokens: latents may point in different directions and fire alike.

    r_ij = (E[c_i c_j] − E[c_i] E[c_j]) / (σ_i σ_j)

over tokens, zeros included. E[c_i c_j] is a sparse product, one block of latents at a time.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from crux.config.errors import UserError
from crux.config.progress import progress, track
from crux.sae.geometry.nearest import NO_LATENT
from crux.sae.reading.sparse_codes import SparseCodes

BLOCK_ENTRIES = 2**24
"""Correlations that are in memory at once."""
TOKENS_AT_ONCE = 2**18
"""Tokens whose codes are copied at once."""
PAIRS_AT_ONCE = 1024
"""Pairs of latents whose codes are copied at once."""


class MostCorrelated(NamedTuple):
    """The latent of another SAE (or another latent of the same one) whose codes correlate most with those of each latent."""

    correlations: Float[np.ndarray, "n"]
    """The largest signed Pearson correlation; NaN for a latent whose codes do not vary, and if there is no other latent."""
    indices: Int[np.ndarray, "n"]
    """The latent that has it, the first one of several; `NO_LATENT` if there is none."""

    @property
    def mean(self) -> float:
        """The mean over latents whose codes vary."""
        return _mean_of_known(self.correlations)


class CodeSimilarity(NamedTuple):
    """How alike the codes of two SAEs, A and B, are on the same tokens; means over latents whose codes vary."""

    to: float
    """The largest correlation of each latent of A with a latent of B."""
    back: float
    """The same for latents of B."""
    matched: float
    """The correlation of the given pairs."""
    chance_to: float
    """`to` after the codes of B are moved to other tokens."""
    chance_back: float
    chance_matched: float


class _Moments(NamedTuple):
    means: Float[np.ndarray, "n"]
    deviations: Float[np.ndarray, "n"]


def find_most_correlated(a: SparseCodes, b: SparseCodes | None = None) -> tuple[MostCorrelated, MostCorrelated]:
    """Return the most correlated latents of `b` for those of `a`, and of `a` for those of `b`; without `b`, other latents of `a`.

    Memory holds the codes, and correlations of one block of latents of `a` with all of `b`. Without `b`, both results are the same.

    Raises:
        UserError: if the codes are not of the same tokens, or there are none.
    """
    others = a if b is None else b
    _check_tokens(a, others)
    best, best_back = np.full(a.n_latents, -np.inf), np.full(others.n_latents, -np.inf)
    indices, indices_back = np.full(a.n_latents, NO_LATENT), np.full(others.n_latents, NO_LATENT)
    for first, correlations in _iterate_correlations(a, others):
        rows = np.arange(len(correlations))
        if b is None:
            correlations[rows, first + rows] = -np.inf
        columns, back = correlations.argmax(1), correlations.argmax(0)
        best[first + rows], indices[first + rows] = correlations[rows, columns], columns
        values = correlations[back, np.arange(others.n_latents)]
        better = values > best_back
        best_back[better], indices_back[better] = values[better], first + back[better]
    return _make_result(best, indices), _make_result(best_back, indices_back)


def correlate_pairs(
    a: SparseCodes, b: SparseCodes, *, rows: Int[np.ndarray, "pairs"], columns: Int[np.ndarray, "pairs"]
) -> Float[np.ndarray, "pairs"]:
    """Return the correlation of latent rows[p] of `a` with latent columns[p] of `b` for each pair; NaN if one does not vary."""
    _check_tokens(a, b)
    left, right = _measure_moments(a), _measure_moments(b)
    products = np.zeros(len(rows))
    with progress("correlating pairs of latents", total=a.n_tokens) as advance:
        for part_a, part_b in _iterate_parts(a, b):
            columns_a, columns_b = part_a.matrix().tocsc(), part_b.matrix().tocsc()
            for first in range(0, len(rows), PAIRS_AT_ONCE):
                block = slice(first, first + PAIRS_AT_ONCE)
                pairs = columns_a[:, rows[block]].astype(np.float64).multiply(columns_b[:, columns[block]])
                products[block] += np.asarray(pairs.sum(0)).ravel()
            advance(part_a.n_tokens)
    covariances = products / a.n_tokens - left.means[rows] * right.means[columns]
    with np.errstate(divide="ignore", invalid="ignore"):
        return covariances / (left.deviations[rows] * right.deviations[columns])


def compare_codes(
    a: SparseCodes, b: SparseCodes, *, rows: Int[np.ndarray, "pairs"], columns: Int[np.ndarray, "pairs"], context: int
) -> CodeSimilarity:
    """Return the correlations of codes, next to those that remain if the codes of B are moved by half of the text.

    Args:
        rows: latents of A; columns: their partners in B, such as those that `match_latents` finds.
        context: tokens per window. Codes are moved by whole windows, so that each token keeps its position.
    """
    moved = shift_tokens(b, by=b.n_tokens // context // 2 * context)
    (to, back), (chance_to, chance_back) = find_most_correlated(a, b), find_most_correlated(a, moved)
    matched, chance = (correlate_pairs(a, other, rows=rows, columns=columns) for other in (b, moved))
    return CodeSimilarity(
        to.mean, back.mean, _mean_of_known(matched), chance_to.mean, chance_back.mean, _mean_of_known(chance)
    )


def shift_tokens(codes: SparseCodes, *, by: int) -> SparseCodes:
    """Return the codes with every token moved by `by` places, the last ones to the front: a chance level for correlations.

    A multiple of the window's length keeps each token's position, so that codes that only depend on the position still correlate.
    """
    by %= max(codes.n_tokens, 1)
    if by == 0:
        return codes
    head, tail = codes.tokens(codes.n_tokens - by, codes.n_tokens), codes.tokens(0, codes.n_tokens - by)
    indptr = np.concatenate([head.indptr, head.indptr[-1] + tail.indptr[1:]])
    latents, values = (np.concatenate([getattr(head, key), getattr(tail, key)]) for key in ("latents", "values"))
    return SparseCodes(indptr, latents, values, codes.n_latents)


def _iterate_correlations(a: SparseCodes, b: SparseCodes) -> Iterator[tuple[int, Float[np.ndarray, "block m"]]]:
    """Yield the first latent of each block of `a`, and its correlations with all of `b`; −∞ if one of both does not vary."""
    left, right = _measure_moments(a), _measure_moments(b)
    block = min(a.n_latents, max(64, BLOCK_ENTRIES // b.n_latents))
    for first in track(range(0, a.n_latents, block), "correlating codes"):
        last = min(first + block, a.n_latents)
        products = np.zeros((last - first, b.n_latents))
        for part_a, part_b in _iterate_parts(a, b):
            products += (part_a.by_latent(first, last).T @ part_b.matrix()).toarray()
        covariances = products / a.n_tokens - np.outer(left.means[first:last], right.means)
        scales = np.outer(left.deviations[first:last], right.deviations)
        yield first, np.divide(covariances, scales, out=np.full_like(covariances, -np.inf), where=scales > 0)


def _iterate_parts(a: SparseCodes, b: SparseCodes) -> Iterator[tuple[SparseCodes, SparseCodes]]:
    """Yield the codes of the same few tokens."""
    for first in range(0, a.n_tokens, TOKENS_AT_ONCE):
        last = min(first + TOKENS_AT_ONCE, a.n_tokens)
        yield a.tokens(first, last), b.tokens(first, last)


def _measure_moments(codes: SparseCodes) -> _Moments:
    """Return mean and standard deviation of each latent's codes over all tokens; 0 for a deviation that is only rounding.

    Deviations from the mean are summed over firing tokens and over the others, so that no large numbers cancel.
    """
    n, size = codes.n_tokens, codes.n_latents
    parts = [codes.tokens(first, min(first + TOKENS_AT_ONCE, n)) for first in range(0, n, TOKENS_AT_ONCE)]
    means = sum((np.bincount(p.latents, p.values, size) for p in parts), np.zeros(size)) / n
    squares = sum(
        (np.bincount(p.latents, (p.values - means[p.latents]) ** 2, size) for p in parts),
        (n - codes.firings()) * means**2,
    )
    deviations = np.sqrt(squares / n)
    return _Moments(means, np.where(deviations > 1e-7 * np.abs(means), deviations, 0.0))


def _mean_of_known(correlations: Float[np.ndarray, "n"]) -> float:
    known = correlations[~np.isnan(correlations)]
    return float(known.mean()) if len(known) else float("nan")


def _make_result(best: np.ndarray, indices: np.ndarray) -> MostCorrelated:
    unknown = ~np.isfinite(best)
    return MostCorrelated(np.where(unknown, np.nan, best), np.where(unknown, NO_LATENT, indices))


def _check_tokens(a: SparseCodes, b: SparseCodes) -> None:
    if a.n_tokens == 0 or a.n_tokens != b.n_tokens:
        raise UserError(f"codes can be correlated on the same tokens only, not on {a.n_tokens:,} and {b.n_tokens:,}")
