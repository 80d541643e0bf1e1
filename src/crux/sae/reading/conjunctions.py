"""Conjunctions of a suffix with another condition, among the candidates for rules: a token, if another one stands within the last 32."""

from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from crux.sae.reading.conditions import Kind, expand_ranges
from crux.sae.reading.context_features import split_gains
from crux.sae.reading.fit_text import MIN_CONTEXT_COUNT, FitText
from crux.sae.reading.sparse_lookup import look_up
from crux.sae.reading.sparse_matrices import make_csr, make_indicator, sorted_csr

RAISE = 1.15
"""A conjunction is a candidate if its gain is at least this multiple of the gains of both of its parts."""


class Conjunctions(NamedTuple):
    """Conjunctions of a suffix and a context feature for a block of latents."""

    node: Int[np.ndarray, "conjunctions"]
    """The suffix, as a node of the tree."""
    feature: Int[np.ndarray, "conjunctions"]
    """The context feature."""
    tokens: scipy.sparse.csr_matrix
    """Ones, conjunctions × tokens, where both hold."""
    of_latent: Int[np.ndarray, "latents bases"]
    """The conjunctions that are candidates of each latent; −1 behind the last."""
    totals: Float[np.ndarray, "latents bases"]
    """Sums of the latent's codes over their tokens."""

    @property
    def counts(self) -> Float[np.ndarray, "conjunctions"]:
        """Number of tokens at which each one holds."""
        return np.diff(self.tokens.indptr).astype(float)


def find_conjunctions(
    text: FitText,
    codes: scipy.sparse.csr_matrix,
    bases: Int[np.ndarray, "latents bases"],
    feature_totals: Float[np.ndarray, "latents features"],
    *,
    shrinkage: float,
) -> Conjunctions:
    """Return for each latent and each of its bases the feature that gives the largest gain together with it, if that is large enough.

    Args:
        codes: codes of the block, tokens × latents.
        bases: suffixes to try, as nodes; −1: none.
        feature_totals: sums of the codes over the tokens of each feature.
    """
    n_latents, n_bases = bases.shape
    within = _codes_at_bases(text, codes, bases)
    totals = sorted_csr(within @ text.features.matrix)
    pair = np.repeat(np.arange(n_latents * n_bases), np.diff(totals.indptr))
    latent, feature = pair // n_bases, totals.indices.astype(np.int64)
    used, base_row = np.unique(np.maximum(bases, 0).reshape(-1), return_inverse=True)
    overlap = sorted_csr(text.indicator[used] @ text.features.matrix)
    count = look_up(overlap, base_row[pair], feature)
    all_total, n = np.asarray(codes.sum(0)).reshape(-1), float(text.n_tokens)
    gains = split_gains(totals.data, count, all_total[latent], n, shrinkage=shrinkage, min_count=MIN_CONTEXT_COUNT)
    gains[text.features.conditions.kinds[feature] == Kind.BOTH] = 0
    base_total = np.asarray(within.sum(1)).reshape(-1)
    base_gain = split_gains(
        base_total, text.tree.counts[np.maximum(bases, 0).reshape(-1)].astype(float), np.repeat(all_total, n_bases), n,
        shrinkage=shrinkage, min_count=1,
    )  # fmt: skip
    feature_gain = split_gains(
        feature_totals[latent, feature], text.features.counts[feature].astype(float), all_total[latent], n,
        shrinkage=shrinkage, min_count=1,
    )  # fmt: skip
    gains[gains < RAISE * np.maximum(base_gain[pair], feature_gain)] = 0
    best = _best_of_rows(gains, totals.indptr)
    return _collect(text, bases, best, totals, feature)


def _codes_at_bases(text: FitText, codes: scipy.sparse.csr_matrix, bases: np.ndarray) -> scipy.sparse.csr_matrix:
    """Return the codes of each pair of a latent and a base at the tokens of the base, pairs × tokens."""
    n_latents, n_bases = bases.shape
    entries = codes.tocoo()
    first = text.tree.first
    rows, columns, values = [], [], []
    for k in range(n_bases):
        base = bases[entries.col, k]
        depth = np.searchsorted(first, base, side="right")  # 0 for the root and for no base
        held = np.flatnonzero((base > 0) & (text.tree.at[entries.row, np.maximum(depth, 1) - 1] == base))
        rows.append(entries.col[held].astype(np.int64) * n_bases + k)
        columns.append(entries.row[held])
        values.append(entries.data[held])
    shape = (n_latents * n_bases, text.n_tokens)
    return make_csr(np.concatenate(values), np.concatenate(rows), np.concatenate(columns), shape)


def _best_of_rows(gains: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Return the place of the largest gain of each row, the first of equal ones; −1 if none is positive."""
    best = np.full(len(indptr) - 1, -1)
    filled = np.flatnonzero(np.diff(indptr))
    if len(filled):
        top = np.zeros(len(best))
        top[filled] = np.maximum.reduceat(gains, indptr[filled])
        row = np.repeat(np.arange(len(best)), np.diff(indptr))
        places = np.flatnonzero((gains == top[row]) & (gains > 0))[::-1]
        best[row[places]] = places  # the first place of a row is written last
    return best


def _collect(
    text: FitText, bases: np.ndarray, best: np.ndarray, totals: scipy.sparse.csr_matrix, feature: np.ndarray
) -> Conjunctions:
    n_latents, n_bases = bases.shape
    pair = np.flatnonzero(best >= 0)
    keys = bases.reshape(-1)[pair] * text.features.n_features + feature[best[pair]]
    distinct, number = np.unique(keys, return_inverse=True)
    node, other = distinct // text.features.n_features, distinct % text.features.n_features
    of_latent, sums = np.full(n_latents * n_bases, -1), np.zeros(n_latents * n_bases)
    of_latent[pair], sums[pair] = number, totals.data[best[pair]]
    tokens = _tokens_of_both(text, node, other)
    return Conjunctions(node, other, tokens, of_latent.reshape(bases.shape), sums.reshape(bases.shape))


def _tokens_of_both(text: FitText, node: np.ndarray, feature: np.ndarray) -> scipy.sparse.csr_matrix:
    """Return where a suffix and a feature hold: the tokens of the rarer one, tested for the other."""
    features = text.features
    rare = text.tree.counts[node] <= features.counts[feature]
    starts = np.where(rare, text.indicator.indptr[node], features.starts[feature])
    lengths = np.where(rare, text.tree.counts[node], features.counts[feature])
    pair = np.repeat(np.arange(len(node)), lengths)
    places = expand_ranges(starts, lengths)
    from_node = rare[pair]
    tokens = np.empty(len(places), np.int64)
    tokens[from_node] = text.indicator.indices[places[from_node]]
    tokens[~from_node] = features.tokens_of[places[~from_node]]
    held = np.empty(len(places), bool)
    held[from_node] = look_up(features.matrix, tokens[from_node], feature[pair[from_node]]) > 0
    depth = np.searchsorted(text.tree.first, node, side="right")
    others = pair[~from_node]
    held[~from_node] = text.tree.at[tokens[~from_node], depth[others] - 1] == node[others]
    return make_indicator(pair[held], tokens[held], (len(node), text.n_tokens))
