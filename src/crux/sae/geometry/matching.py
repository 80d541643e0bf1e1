"""One-to-one matching of two dictionaries, which maximises the sum of cosines (PW-MCC, Song et al. 2505.20254).

Up to `DENSE_LIMIT`² cosines, the assignment problem is solved on all of them. Above, only the most similar candidates of each row and
of each column are considered; rows that find no partner among them are matched in further rounds.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from crux.sae.geometry.nearest import NO_LATENT, find_candidates

DENSE_LIMIT = 8192
"""Largest n for which n × n cosines are in memory at once."""
CANDIDATES = 32
"""Most similar rows of the other dictionary that are considered for each latent in a matching of large dictionaries."""
SHARED_COSINE = 0.7
"""Smallest decoder cosine of a shared latent (Paulo & Belrose 2501.16615)."""

WITHOUT_PARTNER = 4.0
"""Cost of a row without a partner; pairs cost 2 − cos, at most 3."""


class Matching(NamedTuple):
    """One-to-one pairs of rows of two dictionaries; as many as the smaller one has rows."""

    rows: Int[np.ndarray, "pairs"]
    """Rows of the first dictionary, ascending."""
    columns: Int[np.ndarray, "pairs"]
    """Their partners in the second one."""
    cosines: Float[np.ndarray, "pairs"]
    """The cosine of each pair."""
    limited_share: float
    """Share of pairs that the limit of candidates may have changed: the partner was the last candidate, or none of them was free.
    0 if all cosines were considered."""

    @property
    def mean(self) -> float:
        """The mean cosine of the pairs: PW-MCC if both dictionaries have the same size. NaN without pairs."""
        return float(np.mean(self.cosines, dtype=np.float64)) if len(self.cosines) else float("nan")


@torch.no_grad()
def match_latents(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, dense_limit: int = DENSE_LIMIT, candidates: int = CANDIDATES
) -> Matching:
    """Match the unit rows of `a` with those of `b`, one to one, so that the sum of their cosines is as large as possible.

    Args:
        dense_limit: largest n for which n × n cosines are in memory; the memory is 12 n² bytes. Above, only `candidates` are considered.
        candidates: number of most similar rows of the other dictionary that are considered for each row and each column.
    """
    smaller, larger = (a, b) if len(a) <= len(b) else (b, a)
    if len(smaller) == 0:
        nothing = np.zeros(0, np.int64)
        return Matching(nothing, nothing, np.zeros(0, np.float32), 0.0)
    limited = np.zeros(len(smaller), bool)
    partners = np.full(len(smaller), NO_LATENT)
    free = np.arange(len(larger))
    while len(left := np.flatnonzero(partners == NO_LATENT)):
        left_rows, free_rows = smaller[torch.from_numpy(left)], larger[torch.from_numpy(free)]
        if len(left) * len(free) <= dense_limit**2:
            found = linear_sum_assignment((left_rows @ free_rows.T).cpu().numpy(), maximize=True)[1]
        else:
            found, at_limit = _match_candidates(left_rows, free_rows, k=candidates)
            limited[left] |= at_limit
        has_partner = found != NO_LATENT
        partners[left[has_partner]] = free[found[has_partner]]
        free = np.setdiff1d(free, partners[partners != NO_LATENT], assume_unique=True)
    rows, columns = np.arange(len(smaller)), partners
    if smaller is not a:
        order = np.argsort(columns)
        rows, columns = columns[order], rows[order]
    return Matching(rows, columns, measure_cosines(a, b, rows, columns), float(limited.mean()))


def _match_candidates(smaller: Tensor, larger: Tensor, *, k: int) -> tuple[Int[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """Match rows with some of their most similar partners; return the partners, and which rows are at the limit of candidates.

    Each row may stay without a partner, at a cost above that of every pair, so that a solution always exists and has as many pairs as
    the candidates allow.
    """
    n, m = len(smaller), len(larger)
    row_cosines, row_candidates = find_candidates(smaller, larger, k=k)
    column_cosines, column_candidates = find_candidates(larger, smaller, k=k)
    by_row = scipy.sparse.coo_matrix(
        (2.0 - row_cosines.ravel(), (np.repeat(np.arange(n), row_candidates.shape[1]), row_candidates.ravel())), (n, m)
    ).tocsr()
    by_column = scipy.sparse.coo_matrix(
        (
            2.0 - column_cosines.ravel(),
            (column_candidates.ravel(), np.repeat(np.arange(m), column_candidates.shape[1])),
        ),
        (n, m),
    ).tocsr()
    # costs 2 − cos are positive, and equal up to rounding if a pair is a candidate of both
    alone = scipy.sparse.diags(np.full(n, WITHOUT_PARTNER))
    costs = scipy.sparse.csr_matrix(scipy.sparse.hstack([by_row.maximum(by_column), alone]))
    rows, found = min_weight_full_bipartite_matching(costs)
    found = found[np.argsort(rows)].astype(np.int64)
    last = np.maximum.reduceat(np.where(costs.data < WITHOUT_PARTNER, costs.data, 0.0), costs.indptr[:-1])
    chosen = np.asarray(costs[np.arange(n), found]).ravel()
    return np.where(found < m, found, NO_LATENT), (found >= m) | (chosen >= last)


def measure_cosines(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], rows: Int[np.ndarray, "pairs"], columns: Int[np.ndarray, "pairs"]
) -> Float[np.ndarray, "pairs"]:
    """Return the cosine of each pair of unit rows, with products in float64."""
    cosines = np.empty(len(rows), np.float32)
    for first in range(0, len(rows), DENSE_LIMIT):
        block = slice(first, first + DENSE_LIMIT)
        pairs = a[torch.from_numpy(rows[block])].double() * b[torch.from_numpy(columns[block])].double()
        cosines[block] = pairs.sum(1).cpu()
    return cosines


def find_shared(decoder: Matching, encoder: Matching, *, cosine: float = SHARED_COSINE) -> Bool[np.ndarray, "pairs"]:
    """Return which pairs of the decoders' matching are shared latents (Paulo & Belrose 2501.16615).

    A latent is shared if the matchings of decoders and of encoders give it the same partner, and the decoder cosine is at least `cosine`.
    """
    by_encoder = dict(zip(encoder.rows.tolist(), encoder.columns.tolist(), strict=True))
    same = [
        by_encoder.get(row) == column
        for row, column in zip(decoder.rows.tolist(), decoder.columns.tolist(), strict=True)
    ]
    return np.array(same, bool) & (decoder.cosines >= cosine)
