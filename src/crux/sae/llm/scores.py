"""The scores of an LLM's answers about passages, with the levels that answers without knowledge reach."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

CHANCE = 0.5
"""What a failed answer counts as: a passage that is called active with probability ½."""

PERMUTATIONS = 200
"""Number of random permutations of the labels, whose scores are those of answers without any information."""


class Judgements(NamedTuple):
    """The answers about the passages of one latent."""

    answers: Float[np.ndarray, "n"]
    """1 or 0; `CHANCE` if the reply failed."""
    labels: Bool[np.ndarray, "n"]
    hard: Bool[np.ndarray, "n"]
    """True for silent passages with the latent's strongest token, which are not part of the score."""


class JudgementScore(NamedTuple):
    """The score of one latent's explanation."""

    balanced: float
    """Mean of the shares of activating and of silent passages that are recognised (delphi's score); chance and every constant answer: ½."""
    f1: float
    """Harmonic mean of precision and recall at the true prevalence p: precision = p·TPR / (p·TPR + (1−p)·FPR), recall = TPR."""
    f1_constant: float
    """The F1 of calling every passage active: 2p / (1 + p)."""
    hard: float
    """Share of the hard silent passages that are recognised as silent; NaN if there are none."""
    permuted: float
    """The mean balanced score with permuted labels: ½ but for chance."""
    permuted_95: float
    """The 95th percentile of these scores: what answers without information reach once in 20 latents."""


def score_judgements(judgements: Judgements, *, prevalence: float, rng: np.random.Generator) -> JudgementScore:
    """Return the score of a latent.

    Args:
        prevalence: share of all passages in which the latent fires.
    """
    answers, labels, hard = judgements
    a, y = answers[~hard], labels[~hard]
    recall, false_positives = a[y].mean(), a[~y].mean()
    called = prevalence * recall + (1 - prevalence) * false_positives
    precision = prevalence * recall / called if called > 0 else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
    others = permute_labels(y, rng)
    permuted = (others @ a / y.sum() + 1 - ~others @ a / (~y).sum()) / 2
    return JudgementScore(
        balanced=balanced_accuracy(a, y),
        f1=float(f1),
        f1_constant=2 * prevalence / (1 + prevalence),
        hard=float(1 - answers[hard].mean()) if hard.any() else float("nan"),
        permuted=float(permuted.mean()),
        permuted_95=float(np.quantile(permuted, 0.95)),
    )


def balanced_accuracy(answers: Float[np.ndarray, "n"], labels: Bool[np.ndarray, "n"]) -> float:
    """Return (TPR + TNR) / 2, where an answer of ½ counts as half right."""
    return float((answers[labels].mean() + 1 - answers[~labels].mean()) / 2)


def accuracy(answers: Float[np.ndarray, "n"], labels: Bool[np.ndarray, "n"]) -> float:
    """Return the share of right answers (SAEBench's score), where an answer of ½ counts as half right."""
    return float(np.where(labels, answers, 1 - answers).mean())


def permute_labels(labels: Bool[np.ndarray, "n"], rng: np.random.Generator) -> Bool[np.ndarray, "permutations n"]:
    """Return `PERMUTATIONS` random permutations of the labels."""
    return rng.permuted(np.tile(labels, (PERMUTATIONS, 1)), axis=1)


def constant_answer_accuracy(labels: Bool[np.ndarray, "n"]) -> float:
    """Return the accuracy of the better of the two constant answers: 10/14 = 0.714 in SAEBench's protocol."""
    return float(max(labels.mean(), 1 - labels.mean()))


def fill_answers(parsed: Sequence[list[bool] | None], sizes: Sequence[int]) -> Float[np.ndarray, "n"]:
    """Join the answers of several prompts; those of a failed prompt are `CHANCE`."""
    rows = [
        np.full(size, CHANCE) if answer is None else np.array(answer, float)
        for answer, size in zip(parsed, sizes, strict=True)
    ]
    return np.concatenate(rows)
