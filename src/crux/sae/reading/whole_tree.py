"""Scores of the whole suffix tree: how well any number of suffixes could explain a latent, and how much the current token alone does."""

from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float

from crux.sae.reading.fit_rules import SHRINKAGE
from crux.sae.reading.fit_text import FitText
from crux.sae.reading.harvest import ReadText
from crux.sae.reading.rule_scores import MIN_FIRINGS
from crux.sae.reading.score_values import correlate
from crux.sae.reading.sparse_codes import SparseCodes
from crux.sae.reading.sparse_matrices import make_indicator, size_of
from crux.sae.reading.suffix_tree import back_off_weights
from crux.sae.reading.threads import map_in_threads

UNEXPLAINED = 0.2
"""A latent is unexplained if the whole tree's correlation is below this: what it needs is not in the last three tokens."""

LEAVES_PER_BLOCK = 8192
"""Distinct suffixes for which codes are predicted at once."""

LATENTS_PER_BLOCK = 512
"""Latents for which codes are predicted at once."""


class TreeScores(NamedTuple):
    """Scores of the unpruned tree on held-out text; NaN for latents that fire on fewer than 50 held-out tokens."""

    ceiling_rho: Float[np.ndarray, "n_latents"]
    """Pearson correlation over all held-out tokens of the code with the shrunk mean at the longest suffix, of at most three tokens, that
    occurs in the fit text."""
    token_rho: Float[np.ndarray, "n_latents"]
    """The same with suffixes of one token: a table of the mean code by current token."""

    def select(self, latents: slice) -> "TreeScores":
        """Return the scores of some latents."""
        return TreeScores(self.ceiling_rho[latents], self.token_rho[latents])

    @property
    def literal_share(self) -> Float[np.ndarray, "n_latents"]:
        """The part of the explained variance that the current token alone explains: token_rho² / ceiling_rho², 0 and NaN below 0."""
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.maximum(self.token_rho, 0) ** 2 / np.where(self.ceiling_rho > 0, self.ceiling_rho, np.nan) ** 2
        return share

    @property
    def unexplained(self) -> Bool[np.ndarray, "n_latents"]:
        """True for scored latents whose `ceiling_rho` is below 0.2."""
        return self.ceiling_rho < UNEXPLAINED


def score_whole_tree(
    text: FitText,
    held_out: ReadText,
    *,
    fit_codes: SparseCodes,
    held_out_codes: SparseCodes | None = None,
    shrinkage: float = SHRINKAGE,
    label: str = "scoring the whole suffix tree",
) -> TreeScores:
    """Return the scores of the unpruned suffix tree of each latent, with suffixes that occur once or more in the fit text.

    All tokens of the held-out text that end with the same longest known suffix have the same prediction, so sums over suffixes suffice.
    """
    codes = held_out_codes or held_out.codes
    paths = text.tree.find(held_out.windows, held_out.begins)
    rows = [_leaves(paths[:, :1], text, shrinkage), _leaves(paths, text, shrinkage)]
    fit, true = fit_codes.matrix().tocsc(), codes.matrix().tocsc()
    scores = np.full((2, codes.n_latents), np.nan)

    def score(first: int) -> None:
        block = slice(first, min(first + LATENTS_PER_BLOCK, codes.n_latents))
        sums = scipy.sparse.csr_matrix(text.indicator @ fit[:, block].tocsr().astype(np.float64))
        held = true[:, block].tocsr().astype(np.float64)
        for depth, leaves in enumerate(rows):
            scores[depth, block] = _correlations(sums, held, leaves)

    map_in_threads(score, range(0, codes.n_latents, LATENTS_PER_BLOCK), label)
    scores[:, codes.firings() < MIN_FIRINGS] = np.nan
    return TreeScores(ceiling_rho=scores[1], token_rho=scores[0])


class _Leaves(NamedTuple):
    """The distinct longest suffixes of a text."""

    weights: scipy.sparse.csr_matrix
    """Weights of the sums at the nodes in the prediction, leaves × nodes."""
    root_weights: Float[np.ndarray, "leaves"]
    """Weight of the sum over all tokens."""
    tokens: scipy.sparse.csr_matrix
    """Ones, leaves × tokens."""
    counts: Float[np.ndarray, "leaves"]


def _leaves(paths: np.ndarray, text: FitText, shrinkage: float) -> _Leaves:
    deepest = paths.max(1)  # longer suffixes have larger numbers
    _, first, number, count = np.unique(deepest, return_index=True, return_inverse=True, return_counts=True)
    back_off = back_off_weights(text.tree.counts, paths[first].astype(np.int64), shrinkage=shrinkage)
    tokens = make_indicator(number, np.arange(len(number)), (len(first), len(number)))
    return _Leaves(back_off.matrix(text.tree.n_nodes), back_off.weights[:, 0], tokens, count.astype(float))


def _correlations(sums: scipy.sparse.csr_matrix, held: scipy.sparse.csr_matrix, leaves: _Leaves) -> np.ndarray:
    """Return the correlations of a block of latents; a prediction is a sparse part plus the leaf's root weight times the overall sum."""
    everywhere = sums[0].toarray().reshape(-1)
    predicted, squares, products = np.zeros((3, len(everywhere)))
    for first in range(0, len(leaves.counts), LEAVES_PER_BLOCK):
        block = slice(first, first + LEAVES_PER_BLOCK)
        part = (leaves.weights[block] @ sums).toarray() + leaves.root_weights[block, None] * everywhere
        here = leaves.tokens[block] @ held
        predicted += leaves.counts[block] @ part
        squares += leaves.counts[block] @ part**2
        products += np.asarray(here.multiply(part).sum(0)).reshape(-1)
    true = np.asarray(held.sum(0)).reshape(-1)
    true_squares = np.asarray(held.multiply(held).sum(0)).reshape(-1)
    return correlate(float(size_of(held)[0]), (predicted, true), (squares, true_squares), products)
