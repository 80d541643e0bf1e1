"""The two sanity tests of scores of Oikarinen et al. 2506.05774: a sound score falls if labels are missing, and if there are extra ones.

Missing labels: each positive of a perfect explanation is dropped with probability ½. Extra labels: as many random positives are added as
there are. A score fails if it falls by less than 0.001 of its range at some frequency of the concept: it would prefer, or not mind, an
explanation that is too narrow or too broad. Balanced accuracy fails with extra labels, since there are so many negatives.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from crux.sae.reading.score_values import average_precision, balanced_accuracy

FREQUENCIES = (0.499, 0.1, 0.01, 0.001, 0.0001)
"""Frequencies of the concept, as in the paper."""

LEAST_FALL = 0.001
"""Least fall of a sound score, as a share of its range."""

Score = Callable[[Float[np.ndarray, "items"], Float[np.ndarray, "items"]], float]
"""A score of predictions of codes, which are 0 where the latent does not fire."""


class SanityRow(NamedTuple):
    """The smallest mean fall of a score in each test, over the frequencies of the concept."""

    score: str
    missing: float
    """Fall if half of the labels are missing, as a share of the score's range; smallest over frequencies, mean over draws."""
    extra: float
    """The same if there are as many extra labels."""

    @property
    def sound(self) -> bool:
        """True if the score falls in both tests at every frequency."""
        return min(self.missing, self.extra) > LEAST_FALL


def correlation(predicted: Float[np.ndarray, "items"], codes: Float[np.ndarray, "items"]) -> float:
    """Return the Pearson correlation; its range is −1 to 1."""
    return float(np.corrcoef(predicted, codes)[0, 1])


def precision_of_firing(predicted: Float[np.ndarray, "items"], codes: Float[np.ndarray, "items"]) -> float:
    """Return the average precision of firing; its range is 0 to 1."""
    return average_precision(
        predicted[:-1], codes[:-1] > 0, n_others=1, n_others_firing=int(codes[-1] > 0), other=predicted[-1]
    )


def detection(predicted: Float[np.ndarray, "items"], codes: Float[np.ndarray, "items"]) -> float:
    """Return the balanced accuracy of `predicted > 0`, where the items are windows; its range is 0 to 1."""
    return float(balanced_accuracy(predicted[None], (codes > 0)[None], np.array([0.5]))[0])


SCORES: Mapping[str, tuple[Score, float]] = {
    "rho": (correlation, 2.0),
    "ap": (precision_of_firing, 1.0),
    "detection": (detection, 1.0),
}
"""Every score that is shown, with the width of its range."""


def run_sanity_tests(
    *,
    n_items: int,
    n_draws: int,
    seed: int,
    frequencies: Sequence[float] = FREQUENCIES,
    scores: Mapping[str, tuple[Score, float]] = SCORES,
) -> list[SanityRow]:
    """Return how far each score falls for codes that fire exactly where a concept holds, with strengths from Gamma(4, 1/4).

    Args:
        n_items: number of tokens, or of windows for the detection score; the rarest concept needs a few positives.
    """
    falls = {name: np.zeros((2, len(frequencies))) for name in scores}
    rng = np.random.default_rng(seed)
    for column, frequency in enumerate(frequencies):
        n_positive = max(2, round(frequency * n_items))
        for _ in range(n_draws):
            concept = np.zeros(n_items, bool)
            concept[rng.choice(n_items, n_positive, replace=False)] = True
            codes = np.where(concept, rng.gamma(4.0, 0.25, n_items), 0.0)
            for test, label in enumerate((_drop_half(concept, rng), _add_as_many(concept, rng))):
                for name, (score, width) in scores.items():
                    fall = score(concept.astype(float), codes) - score(label.astype(float), codes)
                    falls[name][test, column] += fall / width / n_draws
    return [SanityRow(name, *(float(fall) for fall in table.min(1))) for name, table in falls.items()]


def _drop_half(concept: Bool[np.ndarray, "items"], rng: np.random.Generator) -> Bool[np.ndarray, "items"]:
    kept = concept & (rng.random(len(concept)) < 0.5)
    if not kept.any():  # a label without positives has no correlation
        kept[np.flatnonzero(concept)[0]] = True
    return kept


def _add_as_many(concept: Bool[np.ndarray, "items"], rng: np.random.Generator) -> Bool[np.ndarray, "items"]:
    others = np.flatnonzero(~concept)
    label = concept.copy()
    label[rng.choice(others, min(int(concept.sum()), len(others)), replace=False)] = True
    return label
