"""Scores of rules on held-out documents, at several numbers of rules per latent."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int

from crux.sae.reading.conditions import match_text
from crux.sae.reading.harvest import ReadText
from crux.sae.reading.rules import Rules, predict_latents
from crux.sae.reading.score_values import (
    average_precision,
    balanced_accuracy,
    best_threshold,
    correlate,
    window_numbers,
)
from crux.sae.reading.sparse_codes import SparseCodes
from crux.sae.reading.sparse_matrices import size_of
from crux.sae.reading.threads import map_in_threads

MIN_FIRINGS = 50
"""Least number of held-out tokens on which a latent must fire to be scored."""

WINDOW = 32
"""Tokens of a window in the detection score."""

LATENTS_PER_BLOCK = 256
"""Latents whose predictions are in memory at once."""


class RuleScores(NamedTuple):
    """Scores of the rules of all latents on held-out text; NaN for latents that are not scored."""

    sizes: tuple[int, ...]
    """Numbers of rules per latent, ascending: the rows of the scores."""
    firings: Int[np.ndarray, "n_latents"]
    """Number of held-out tokens on which a latent fires; below 50, it is not scored."""
    density: Float[np.ndarray, "n_latents"]
    """Share of the held-out tokens on which a latent fires: the average precision of a random order."""
    rho: Float[np.ndarray, "sizes n_latents"]
    """Pearson correlation of predicted and true codes over all held-out tokens; 0 if the prediction is constant."""
    ap: Float[np.ndarray, "sizes n_latents"]
    """Average precision with which the predicted code finds the tokens that fire; tokens with equal predictions count as one step."""
    detection: Float[np.ndarray, "sizes n_latents"]
    """Balanced accuracy of saying which windows of 32 tokens have a firing token, at the threshold chosen on the fit documents; chance
    is 0.5. For comparison with published numbers only: it fails the sanity tests."""

    def select(self, latents: slice) -> "RuleScores":
        """Return the scores of some latents."""
        return RuleScores(
            self.sizes, self.firings[latents], self.density[latents], self.rho[:, latents], self.ap[:, latents],
            self.detection[:, latents],
        )  # fmt: skip

    @property
    def scored(self) -> Bool[np.ndarray, "n_latents"]:
        """True for latents that fire often enough on held-out text."""
        return self.firings >= MIN_FIRINGS


def score_rules(
    rule_lists: Mapping[int, Rules],
    fit: ReadText,
    held_out: ReadText,
    *,
    fit_codes: SparseCodes | None = None,
    held_out_codes: SparseCodes | None = None,
    label: str = "scoring rules",
) -> RuleScores:
    """Return the scores of lists of rules, by their number of rules per latent.

    Args:
        rule_lists: rules of the same latents from one call of `fit_rule_lists`.
        fit: the text on which the rules were fitted; used for the threshold of the detection score alone.
        fit_codes: codes on these tokens instead of the text's own; the same for `held_out_codes`.
    """
    sizes = tuple(sorted(rule_lists))
    sides = [_Side(fit, fit_codes or fit.codes), _Side(held_out, held_out_codes or held_out.codes)]
    n_latents = sides[1].codes.n_latents
    firings = sides[1].codes.firings()
    scores = np.full((3, len(sizes), n_latents), np.nan)
    held = _held_conditions(rule_lists, sides)

    def score(first: int) -> None:
        block = np.arange(first, min(first + LATENTS_PER_BLOCK, n_latents))
        block = block[firings[block] >= MIN_FIRINGS]
        if not len(block):
            return
        true = [side.by_latent[:, block] for side in sides]
        active = [side.active_windows(codes) for side, codes in zip(sides, true, strict=True)]
        for row, size in enumerate(sizes):
            predicted = [predict_latents(rule_lists[size], matrix, block) for matrix in held]
            maxima = [side.window_maxima(codes) for side, codes in zip(sides, predicted, strict=True)]
            scores[0, row, block] = _correlations(predicted[1], true[1])
            scores[1, row, block] = _average_precisions(predicted[1], true[1])
            thresholds = best_threshold(maxima[0], active[0])
            scores[2, row, block] = balanced_accuracy(maxima[1], active[1], thresholds)

    map_in_threads(score, range(0, n_latents, LATENTS_PER_BLOCK), label)
    return RuleScores(sizes, firings, firings / sides[1].codes.n_tokens, *scores)


class _Side:
    """One side of the text, with its codes by latent."""

    def __init__(self, text: ReadText, codes: SparseCodes) -> None:
        self.text, self.codes = text, codes
        self.by_latent = scipy.sparse.csc_matrix(codes.matrix())
        self.window = window_numbers(text.n_tokens, context=text.windows.shape[1], length=WINDOW)
        self.window_sizes = np.bincount(self.window)

    def active_windows(self, codes: scipy.sparse.csc_matrix) -> Bool[np.ndarray, "latents windows"]:
        """Return in which windows each latent fires."""
        latent = np.repeat(np.arange(size_of(codes)[1]), np.diff(codes.indptr))
        active = np.zeros((size_of(codes)[1], len(self.window_sizes)), bool)
        active[latent, self.window[codes.indices]] = True
        return active

    def window_maxima(self, codes: scipy.sparse.csc_matrix) -> Float[np.ndarray, "latents windows"]:
        """Return the largest entry in each window, where an entry that is not stored is 0."""
        n_windows = len(self.window_sizes)
        keys = np.repeat(np.arange(size_of(codes)[1]), np.diff(codes.indptr)) * n_windows + self.window[codes.indices]
        maxima = np.zeros(size_of(codes)[1] * n_windows)
        if len(keys):
            starts = np.flatnonzero(np.diff(keys, prepend=-1))
            top, stored = np.maximum.reduceat(codes.data, starts), np.diff(starts, append=len(keys))
            whole = stored == self.window_sizes[keys[starts] % n_windows]
            maxima[keys[starts]] = np.where(whole, top, np.maximum(top, 0))
        return maxima.reshape(size_of(codes)[1], n_windows)


def _held_conditions(rule_lists: Mapping[int, Rules], sides: list[_Side]) -> list[scipy.sparse.csr_matrix]:
    """Return where each condition of the lists holds, on each side; the lists share their table of conditions."""
    lists = list(rule_lists.values())
    assert all(rules.conditions is lists[0].conditions for rules in lists), "lists of rules from one fit"
    rules = lists[0]
    return [match_text(rules.conditions, side.text.windows, side.text.begins, rules.classes) for side in sides]


def _correlations(predicted: scipy.sparse.csc_matrix, true: scipy.sparse.csc_matrix) -> Float[np.ndarray, "block"]:
    true = scipy.sparse.csc_matrix(true, dtype=np.float64)
    sums = [np.asarray(matrix.sum(0)).reshape(-1) for matrix in (predicted, true)]
    squares = [np.asarray(matrix.multiply(matrix).sum(0)).reshape(-1) for matrix in (predicted, true)]
    products = np.asarray(predicted.multiply(true).sum(0)).reshape(-1)
    return correlate(size_of(predicted)[0], (sums[0], sums[1]), (squares[0], squares[1]), products)


def _average_precisions(
    predicted: scipy.sparse.csc_matrix, true: scipy.sparse.csc_matrix
) -> Float[np.ndarray, "block"]:
    found = np.empty(size_of(predicted)[1])
    for latent, (values, fires, n_firing) in enumerate(_columns(predicted, true)):
        found[latent] = average_precision(
            values,
            fires,
            n_others=size_of(predicted)[0] - len(values),
            n_others_firing=n_firing - int(fires.sum()),
            other=0.0,
        )
    return found


def _columns(
    predicted: scipy.sparse.csc_matrix, true: scipy.sparse.csc_matrix
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield for each latent the stored predictions, whether it fires there, and the number of tokens on which it fires."""
    fires = np.zeros(size_of(predicted)[0], bool)
    for latent in range(size_of(predicted)[1]):
        column = slice(predicted.indptr[latent], predicted.indptr[latent + 1])
        firing = true.indices[true.indptr[latent] : true.indptr[latent + 1]]
        fires[firing] = True
        yield predicted.data[column], fires[predicted.indices[column]], len(firing)
        fires[firing] = False
