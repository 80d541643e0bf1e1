"""Sparse probing: how well do one, two or five latents tell a property of the text, compared with what needs no SAE?

Protocol of Gurnee et al. 2305.01610 and SAEBench (k latents are selected on training tokens, then a logistic regression), with the
baselines without which the numbers cannot be read (Chanin 2605.18229): a probe of the whole activation, of the token alone, of
single coordinates and principal components, and of random directions.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
import scipy.stats
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression

from crux.config.errors import UserError
from crux.config.progress import track
from crux.sae.reading.harvest import Harvest, ReadText
from crux.sae.reading.probing_labels import ProbeLabels
from crux.sae.reading.random_codes import random_topk_codes
from crux.sae.reading.sparse_codes import SparseCodes

MIN_OF_CLASS = 20
"""A split is left out of a task if its training or test tokens have fewer tokens of one class."""

ITERATIONS = 300
"""Maximum number of iterations of a logistic regression."""


class Score(NamedTuple):
    """The score of a probe on test tokens."""

    auroc: float
    """Probability that a token with the label scores higher than one without it; chance: 0.5."""
    accuracy: float
    """Mean of the shares of both classes that are classified correctly: the accuracy if both were equally frequent; chance: 0.5."""


class _Split(NamedTuple):
    """The tokens of one split of one task; training and test tokens come from different documents."""

    train: Int[np.ndarray, "train"]
    test: Int[np.ndarray, "test"]
    y_train: Bool[np.ndarray, "train"]
    y_test: Bool[np.ndarray, "test"]


def probe_latents(
    harvest: Harvest,
    *,
    fit: ProbeLabels,
    held_out: ProbeLabels,
    n_train: int,
    n_test: int,
    seed: int,
    ks: Sequence[int] = (1, 2, 5),
    n_splits: int = 5,
    dictionaries: Mapping[str, tuple[SparseCodes, SparseCodes]] | None = None,
) -> pd.DataFrame:
    """Return the scores of probes of every task, one row per task, kind of features and k.

    In each split, other documents serve for training (from the harvest's training documents) and for the test (from its held-out
    documents), so that the splits are independent repetitions. The k features with the largest |difference of the class means| / pooled
    standard deviation on training tokens are selected, scaled to variance 1, and used in a logistic regression with balanced class weights.

    Features:
        latents        the SAE's codes
        dense          the whole activation x (k is 0)
        token          the share of training tokens with the label, by token id (k is 0)
        coordinates    coordinates of x;    pca    principal components of x on the training tokens
        random_topk    codes of as many random directions as the SAE has latents, with its L0
        and the names of `dictionaries`
    Columns: task, features, k, auroc and accuracy (means over splits), auroc_low, auroc_high, accuracy_low, accuracy_high (95 % Student
    intervals of the means over splits: the noise of the measurement, NaN for one split), gain = (auroc − ½)/(auroc of dense − ½) (NaN
    without activations), share (of test tokens with the label), n_splits (those with enough tokens of both classes). A task that has none
    has one row with NaN. Rows without activations in the harvest lack dense, coordinates, pca and random_topk.

    Args:
        fit, held_out: the labels of both sides.
        n_train, n_test: maximum number of tokens of each split, drawn without replacement.
        ks: numbers of features.
        dictionaries: the codes of other dictionaries on the same two texts, such as an untrained SAE.

    Raises:
        UserError: if the two sides have different tasks.
    """
    if set(fit.labels) != set(held_out.labels):
        raise UserError(
            f"probing: both sides need the same tasks, not {sorted(fit.labels)} and {sorted(held_out.labels)}"
        )
    rng = np.random.default_rng(seed)
    folds = [_assign_folds(read, harvest.end_of_text, n_splits, rng) for read in (harvest.fit, harvest.held_out)]
    codes = {"latents": (harvest.fit.codes, harvest.held_out.codes), **(dictionaries or {})}
    rows: list[dict[str, object]] = []
    for task in track(sorted(fit.labels), "probing the latents"):
        results: dict[tuple[str, int], list[Score]] = {}
        shares = []
        for fold in range(n_splits):
            train, y_train = _draw_tokens(fit.labels[task], folds[0] == fold, n_train, rng)
            test, y_test = _draw_tokens(held_out.labels[task], folds[1] == fold, n_test, rng)
            if min(y.sum() if of else (~y).sum() for y in (y_train, y_test) for of in (True, False)) < MIN_OF_CLASS:
                continue
            split = _Split(train, test, y_train, y_test)
            shares.append(y_test.mean())
            for name, k, score in _score_split(harvest, split, codes, ks=ks, seed=seed + fold):
                results.setdefault((name, k), []).append(score)
        rows += _summarise(task, results, shares)
    return pd.DataFrame(rows)


def _score_split(
    harvest: Harvest,
    split: _Split,
    codes: Mapping[str, tuple[SparseCodes, SparseCodes]],
    *,
    ks: Sequence[int],
    seed: int,
) -> Iterator[tuple[str, int, Score]]:
    """Yield the name, k and score of every probe on one split."""
    for name, (of_fit, of_held_out) in codes.items():
        train, test = of_fit.matrix()[split.train], of_held_out.matrix()[split.test]
        yield from _score_selected(name, train, test, split, ks)
    yield "token", 0, _score_tokens(harvest, split)
    if harvest.fit.x is None or harvest.held_out.x is None:
        return
    x_train, x_test = (
        np.asarray(side, np.float64) for side in (harvest.fit.x[split.train], harvest.held_out.x[split.test])
    )
    yield "dense", 0, _score_probe(x_train, x_test, split)
    yield from _score_selected("coordinates", x_train, x_test, split, ks)
    mean = x_train.mean(0)
    _, _, components = np.linalg.svd(x_train - mean, full_matrices=False)
    yield from _score_selected("pca", (x_train - mean) @ components.T, (x_test - mean) @ components.T, split, ks)
    n_latents = harvest.fit.codes.n_latents
    l0 = len(harvest.fit.codes.values) / max(harvest.fit.n_tokens, 1)
    train, test = random_topk_codes((x_train, x_test), mean=mean, n_latents=n_latents, k=max(1, round(l0)), seed=seed)
    yield from _score_selected("random_topk", train, test, split, ks)


def select_features(
    features: scipy.sparse.csr_matrix | Float[np.ndarray, "n d"], labels: Bool[np.ndarray, "n"], *, k: int
) -> Int[np.ndarray, "k"]:
    """Return the k features with the largest |m₁ − m₀| / s, best first; ties go to the lower index.

    m₁ and m₀ are the means over tokens with and without the label, s² = (n₁ s₁² + n₀ s₀²) / (n₁ + n₀) the pooled variance. A feature that
    does not vary within the classes but differs between them is better than any other one; a constant one is worse.
    """
    weights = np.stack([labels, ~labels]).astype(np.float64)
    n = weights.sum(1, keepdims=True)
    squares = features**2 if isinstance(features, np.ndarray) else features.multiply(features)
    sums = np.asarray((features.T @ weights.T).T)
    means, mean_squares = sums / n, np.asarray((squares.T @ weights.T).T) / n
    pooled = (n * (mean_squares - means**2)).sum(0) / n.sum()
    difference = np.abs(means[0] - means[1])
    floor = 1e-12 * mean_squares.max(0)  # rounding
    ratio = np.divide(
        difference, np.sqrt(np.maximum(pooled, floor)), out=np.zeros_like(difference), where=difference > 0
    )
    return np.argsort(-ratio, kind="stable")[:k]


def _score_selected(
    name: str,
    train: scipy.sparse.csr_matrix | Float[np.ndarray, "train d"],
    test: scipy.sparse.csr_matrix | Float[np.ndarray, "test d"],
    split: _Split,
    ks: Sequence[int],
) -> Iterator[tuple[str, int, Score]]:
    best = select_features(train, split.y_train, k=max(ks))
    chosen = [
        m[:, best] if isinstance(m, np.ndarray) else m[:, best].toarray().astype(np.float64) for m in (train, test)
    ]
    for k in ks:
        yield name, k, _score_probe(chosen[0][:, :k], chosen[1][:, :k], split)


def _score_probe(train: Float[np.ndarray, "train d"], test: Float[np.ndarray, "test d"], split: _Split) -> Score:
    """Return the score of a logistic regression on features scaled to variance 1."""
    mean, scale = train.mean(0), train.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    probe = LogisticRegression(class_weight="balanced", max_iter=ITERATIONS, tol=1e-3)
    probe.fit((train - mean) / scale, split.y_train)
    scores = probe.decision_function((test - mean) / scale)
    return _score(scores, scores > 0, split.y_test)


def _score_tokens(harvest: Harvest, split: _Split) -> Score:
    """Return the score of the share of training tokens with the label, by token id, shrunk to that of all tokens by one count."""
    train, test = harvest.fit.tokens[split.train], harvest.held_out.tokens[split.test]
    size = int(max(train.max(), test.max())) + 1
    base = split.y_train.mean()
    shares = (np.bincount(train, split.y_train, size) + base) / (np.bincount(train, minlength=size) + 1)
    return _score(shares[test], shares[test] > base, split.y_test)


def _score(
    scores: Float[np.ndarray, "test"], predicted: Bool[np.ndarray, "test"], y: Bool[np.ndarray, "test"]
) -> Score:
    return Score(area_under_roc(y, scores), float((predicted[y].mean() + (~predicted[~y]).mean()) / 2))


def area_under_roc(y: Bool[np.ndarray, "n"], scores: Float[np.ndarray, "n"]) -> float:
    """Return the probability that a true item has a larger score than a false one, plus half that of a tie (Mann-Whitney U)."""
    n_true = int(y.sum())
    ranks = scipy.stats.rankdata(scores)
    return float((ranks[y].sum() - n_true * (n_true + 1) / 2) / (n_true * (len(y) - n_true)))


def _assign_folds(
    read: ReadText, end_of_text: int | None, n_splits: int, rng: np.random.Generator
) -> Int[np.ndarray, "tokens"]:
    """Return the split of each token; all tokens of a document are in the same one.

    A document is what lies between two end-of-text tokens. Where windows between two others were not read, an end may have been missed:
    then several documents count as one. With fewer documents than splits, the windows are divided into as many stretches instead; the
    splits then share documents with each other, but training and test tokens never do.
    """
    ends = np.zeros(read.n_tokens, np.int64) if end_of_text is None else (read.tokens == end_of_text).astype(np.int64)
    documents = np.cumsum(ends) - ends  # the end-of-text token belongs to the document that it ends
    n_documents = int(documents[-1]) + 1
    if n_documents < n_splits:
        return np.arange(read.n_tokens) * n_splits // read.n_tokens
    sizes = np.bincount(documents, minlength=n_documents)
    fold, filled = np.zeros(n_documents, np.int64), np.zeros(n_splits)
    for document in rng.permutation(n_documents):  # into the split that has the fewest tokens so far
        fold[document] = filled.argmin()
        filled[fold[document]] += sizes[document]
    return fold[documents]


def _draw_tokens(
    labels: Int[np.ndarray, "tokens"], within: Bool[np.ndarray, "tokens"], n: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "drawn"], Bool[np.ndarray, "drawn"]]:
    """Draw up to n tokens that have a label, in the order of the text; return them with their labels."""
    (usable,) = np.nonzero(within & (labels >= 0))
    chosen = np.sort(rng.choice(usable, min(n, len(usable)), replace=False))
    return chosen, labels[chosen] == 1


def _summarise(
    task: str, results: Mapping[tuple[str, int], list[Score]], shares: list[float]
) -> list[dict[str, object]]:
    nothing = {"task": task, "features": "latents", "k": 0, "n_splits": 0}
    if not results:
        return [nothing]
    dense = results.get(("dense", 0))
    dense_gain = np.mean([score.auroc for score in dense]) - 0.5 if dense else np.nan
    rows = []
    for (name, k), scores in results.items():
        row: dict[str, object] = {"task": task, "features": name, "k": k}
        for column in Score._fields:
            values = np.array([getattr(score, column) for score in scores])
            half = np.nan
            if len(values) > 1:
                half = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
            row |= {
                column: values.mean(),
                f"{column}_low": values.mean() - half,
                f"{column}_high": values.mean() + half,
            }
        gain = (np.mean([score.auroc for score in scores]) - 0.5) / dense_gain
        rows.append(row | {"gain": gain, "share": np.mean(shares), "n_splits": len(scores)})
    return rows
