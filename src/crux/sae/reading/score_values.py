"""Scores of predicted codes from their distinct values: correlation, average precision, and detection in windows."""

import numpy as np
from jaxtyping import Bool, Float, Int


def correlate(
    n: float,
    sums: tuple[Float[np.ndarray, "latents"], Float[np.ndarray, "latents"]],
    squares: tuple[Float[np.ndarray, "latents"], Float[np.ndarray, "latents"]],
    products: Float[np.ndarray, "latents"],
) -> Float[np.ndarray, "latents"]:
    """Return the Pearson correlation over n tokens from the sums, the sums of squares and of products of two quantities.

    It is 0 if the first quantity, the prediction, is constant: such an explanation says nothing. It is NaN if the second one is.
    """
    spread = squares[0] - sums[0] ** 2 / n
    constant = spread <= 1e-12 * np.maximum(squares[0], 1e-300)
    other = squares[1] - sums[1] ** 2 / n
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (products - sums[0] * sums[1] / n) / np.sqrt(np.where(constant, 1.0, spread) * other)
    return np.where(other > 0, np.where(constant, 0.0, found), np.nan)


def average_precision(
    values: Float[np.ndarray, "entries"],
    fires: Bool[np.ndarray, "entries"],
    *,
    n_others: int,
    n_others_firing: int,
    other: float,
) -> float:
    """Return Σ (R_k − R_{k−1}) P_k over the distinct predicted values in falling order, with recall R and precision P of firing.

    Args:
        values: predicted codes, and whether the latent fires there, at some of the tokens.
        n_others: number of the other tokens, at all of which `other` is predicted; `n_others_firing` of them fire.
    """
    levels, inverse = np.unique(np.append(values, other), return_inverse=True)
    count = np.bincount(inverse, minlength=len(levels))
    hits = np.bincount(inverse[:-1], fires, minlength=len(levels))
    count[inverse[-1]] += n_others - 1
    hits[inverse[-1]] += n_others_firing
    hits, count = hits[::-1], np.cumsum(count[::-1])
    found = np.cumsum(hits)
    if not found[-1]:
        return float("nan")
    return float((hits * found / np.maximum(count, 1)).sum() / found[-1])


def window_numbers(n_tokens: int, *, context: int, length: int) -> Int[np.ndarray, "tokens"]:
    """Return the number of the window of `length` tokens that each token is in; none crosses the end of a context."""
    tokens = np.arange(n_tokens)
    return tokens // context * -(-context // length) + tokens % context // length


def best_threshold(
    scores: Float[np.ndarray, "latents windows"], active: Bool[np.ndarray, "latents windows"]
) -> Float[np.ndarray, "latents"]:
    """Return the threshold with the largest balanced accuracy of `score ≥ threshold`, the highest of equal ones."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked, truth = np.take_along_axis(scores, order, 1), np.take_along_axis(active, order, 1)
    hits = np.cumsum(truth, 1)
    misses = np.arange(1, scores.shape[1] + 1) - hits
    n_active = hits[:, -1:]
    n_silent = scores.shape[1] - n_active
    balanced = (hits / np.maximum(n_active, 1) + 1 - misses / np.maximum(n_silent, 1)) / 2
    last = np.ones_like(truth)  # of the windows with the same score
    last[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    best = np.where(last, balanced, -1.0).argmax(1)
    return ranked[np.arange(len(ranked)), best]


def balanced_accuracy(
    scores: Float[np.ndarray, "latents windows"],
    active: Bool[np.ndarray, "latents windows"],
    thresholds: Float[np.ndarray, "latents"],
) -> Float[np.ndarray, "latents"]:
    """Return (TPR + TNR) / 2 of `score ≥ threshold`; NaN if all windows are active, or none is. A constant answer has 0.5."""
    predicted = scores >= thresholds[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        true_positive = (predicted & active).sum(1) / active.sum(1)
        true_negative = (~predicted & ~active).sum(1) / (~active).sum(1)
    return (true_positive + true_negative) / 2
