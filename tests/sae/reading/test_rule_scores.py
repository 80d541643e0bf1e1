"""Scores of rules and of the whole suffix tree, compared with scikit-learn and with slow implementations."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from crux.sae.reading.fit_rules import fit_rule_lists
from crux.sae.reading.fit_text import prepare_fit
from crux.sae.reading.harvest import ReadText, find_text_begins
from crux.sae.reading.rule_scores import MIN_FIRINGS, score_rules
from crux.sae.reading.rules import predict_dense
from crux.sae.reading.sanity_tests import run_sanity_tests
from crux.sae.reading.score_values import average_precision, best_threshold, correlate, window_numbers
from crux.sae.reading.sparse_codes import SparseCodes
from crux.sae.reading.suffix_tree import back_off_weights, grow_suffix_tree
from crux.sae.reading.token_classes import TokenClasses
from crux.sae.reading.whole_tree import score_whole_tree

VOCAB, N_LATENTS, CONTEXT = 30, 6, 80
CLASSES = TokenClasses(("a",), np.random.default_rng(3).random((VOCAB, 1)) < 0.3)


def make_side(n_windows: int, seed: int) -> ReadText:
    rng = np.random.default_rng(seed)
    p = 1 / np.arange(2, VOCAB + 2)
    windows = rng.choice(VOCAB, size=(n_windows, CONTEXT), p=p / p.sum())
    tokens = windows.reshape(-1)
    strength = np.random.default_rng(7).exponential(size=(VOCAB, N_LATENTS)) * (
        np.random.default_rng(8).random((VOCAB, N_LATENTS)) < 0.15
    )
    dense = (strength[tokens] * rng.gamma(4, 0.25, (len(tokens), N_LATENTS))).astype(np.float32)
    dense += (rng.random(dense.shape) < 0.01) * rng.exponential(size=dense.shape).astype(np.float32)
    dense[:, 4] = 0
    dense[:20, 4] = 1  # fires too rarely
    rows, latents = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum((dense != 0).sum(1))])
    codes = SparseCodes(indptr, latents.astype(np.int32), dense[rows, latents], N_LATENTS)
    return ReadText(windows, find_text_begins(windows, 0), codes, None)


FIT, HELD_OUT = make_side(150, 0), make_side(100, 1)
PREPARED = prepare_fit(FIT.windows, FIT.begins, CLASSES)


def test_scores_are_those_of_the_dense_predictions() -> None:
    lists = fit_rule_lists(PREPARED, FIT.codes, sizes=[1, 5])
    scores = score_rules(lists, FIT, HELD_OUT)
    assert scores.sizes == (1, 5)
    true = HELD_OUT.codes.matrix().toarray().astype(np.float64)
    np.testing.assert_array_equal(scores.firings, (true != 0).sum(0))
    assert scores.firings[4] < MIN_FIRINGS
    assert scores.scored.tolist() == [True] * 4 + [False, True]
    assert np.isnan(scores.rho[:, 4]).all()
    assert np.isnan(scores.detection[:, 4]).all()
    fit_active, active = (windows_of(side.codes.matrix().toarray()).max(2) > 0 for side in (FIT, HELD_OUT))
    for row, size in enumerate((1, 5)):
        predicted = predict_dense(lists[size], HELD_OUT.windows, HELD_OUT.begins).astype(np.float64)
        fitted = windows_of(predict_dense(lists[size], FIT.windows, FIT.begins)).max(2)
        maxima = windows_of(predicted).max(2)
        for i in np.flatnonzero(scores.scored):
            assert scores.rho[row, i] == pytest.approx(np.corrcoef(predicted[:, i], true[:, i])[0, 1], abs=1e-6)
            expected = average_precision_score(true[:, i] > 0, predicted[:, i])
            assert scores.ap[row, i] == pytest.approx(expected, abs=1e-6)
            best = max(
                (balanced_accuracy_score(fit_active[i], fitted[i] >= level), level) for level in np.unique(fitted[i])
            )
            detected = balanced_accuracy_score(active[i], maxima[i] >= best[1] - 1e-9)
            assert scores.detection[row, i] == pytest.approx(detected, abs=1e-9)


def windows_of(dense: np.ndarray) -> np.ndarray:
    """Return the values of each window of up to 32 tokens, latents × windows × 32; contexts of 80 tokens end with a window of 16."""
    padded = np.full((len(dense) // CONTEXT, 96, dense.shape[1]), -np.inf)
    padded[:, :CONTEXT] = dense.reshape(-1, CONTEXT, dense.shape[1])
    return padded.reshape(-1, 32, dense.shape[1]).transpose(2, 0, 1)


def test_windows_do_not_cross_contexts() -> None:
    assert window_numbers(10, context=5, length=3).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_with_ties_is_that_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, fires = rng.integers(-2, 3, 200) * 0.5, rng.random(200) < 0.2
    values[120:] = 0.5
    found = average_precision(values[:120], fires[:120], n_others=80, n_others_firing=int(fires[120:].sum()), other=0.5)
    assert found == pytest.approx(average_precision_score(fires, values))
    assert found != pytest.approx(fires.mean(), abs=1e-3)
    alone = average_precision(values, fires, n_others=0, n_others_firing=0, other=7.0)
    assert alone == pytest.approx(average_precision_score(fires, values))


def test_a_constant_prediction_has_correlation_0_and_constant_codes_have_none() -> None:
    a, b = np.array([2.0, 3.0, 4.0]), np.array([1.0, 5.0, 0.0])
    sums = np.array([a.sum(), 3.0, a.sum()]), np.array([b.sum(), b.sum(), 6.0])
    squares = np.array([a @ a, 3.0, a @ a]), np.array([b @ b, b @ b, 12.0])
    found = correlate(3.0, sums, squares, np.array([a @ b, b.sum(), 2 * a.sum()]))
    assert found[0] == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert found[1] == 0
    assert np.isnan(found[2])


def test_best_threshold_is_the_highest_of_equal_ones() -> None:
    scores = np.array([[3.0, 2.0, 1.0, 0.0]])
    assert best_threshold(scores, np.array([[True, False, True, False]])).tolist() == [3.0]
    assert best_threshold(scores, np.array([[False, True, False, False]])).tolist() == [2.0]
    assert best_threshold(np.array([[1.0, 1.0, 0.0]]), np.array([[True, False, False]])).tolist() == [1.0]


@pytest.mark.parametrize("kappa", [1.0, 2.0])
def test_the_whole_tree_predicts_recursively_shrunk_means(kappa: float) -> None:
    found = score_whole_tree(PREPARED, HELD_OUT, fit_codes=FIT.codes, shrinkage=kappa)
    fit, true = FIT.codes.matrix().toarray().astype(np.float64), HELD_OUT.codes.matrix().toarray().astype(np.float64)
    means = slow_means(FIT, fit, kappa)
    for depth, name in ((1, "token_rho"), (3, "ceiling_rho")):
        predicted = np.empty(true.shape)
        for t, suffixes in enumerate(slow_suffixes(HELD_OUT)):
            known = [s for s in suffixes[: depth + 1] if s in means]
            predicted[t] = means[known[-1]]
        for i in (0, 1, 2, 3, 5):
            expected = np.corrcoef(predicted[:, i], true[:, i])[0, 1]
            assert getattr(found, name)[i] == pytest.approx(expected, abs=1e-9)
    assert np.isnan(found.ceiling_rho[4])
    np.testing.assert_allclose(found.literal_share, found.token_rho**2 / found.ceiling_rho**2)
    assert found.unexplained.tolist() == [False] * 6


def slow_suffixes(side: ReadText) -> list[list[tuple[int, ...]]]:
    """Return the suffixes of 0 to 3 tokens at each token, as far as its text reaches."""
    found, text = [], []
    for token, first in zip(side.tokens.tolist(), side.begins, strict=True):
        text = [token] if first else [*text, token]
        found.append([tuple(text[len(text) - n :]) for n in range(min(3, len(text)) + 1)])
    return found


def slow_means(side: ReadText, codes: np.ndarray, kappa: float) -> dict[tuple[int, ...], np.ndarray]:
    count, total = {}, {}
    for t, suffixes in enumerate(slow_suffixes(side)):
        for suffix in suffixes:
            count[suffix] = count.get(suffix, 0) + 1
            total[suffix] = total.get(suffix, 0) + codes[t]
    means = {(): total[()] / count[()]}
    for suffix in sorted(count, key=len)[1:]:
        means[suffix] = (total[suffix] + kappa * means[suffix[1:]]) / (count[suffix] + kappa)
    return means


def test_the_tree_has_the_suffixes_of_the_text() -> None:
    tree = grow_suffix_tree(FIT.windows, FIT.begins, vocab=VOCAB)
    expected: dict[tuple[int, ...], int] = {}
    for suffixes in slow_suffixes(FIT):
        for suffix in suffixes:
            expected[suffix] = expected.get(suffix, 0) + 1
    tokens = [tuple(t for t in row[::-1] if t >= 0) for row in tree.tokens_of(np.arange(tree.n_nodes)).tolist()]
    assert dict(zip(tokens, tree.counts.tolist(), strict=True)) == expected
    assert [tokens[p] for p in tree.parent[1:]] == [suffix[1:] for suffix in tokens[1:]]
    np.testing.assert_array_equal(tree.find(FIT.windows, FIT.begins), tree.at)
    np.testing.assert_array_equal(np.asarray(tree.indicator().sum(1)).reshape(-1), tree.counts)
    weights = back_off_weights(np.array([10, 4, 2]), np.array([[1, 2], [1, -1], [-1, -1]]), shrinkage=2.0)
    np.testing.assert_allclose(weights.weights[0], [2 / 6 * 2 / 4 / 10, 2 / 4 / 6, 1 / 4])
    np.testing.assert_allclose(weights.weights[1:], [[2 / 6 / 10, 1 / 6, 0], [1 / 10, 0, 0]])


def test_correlation_and_average_precision_are_sound_and_detection_is_not() -> None:
    """The published outcome of the two tests: Pearson correlation and AUPRC pass, balanced accuracy fails."""
    rows = {
        row.score: row for row in run_sanity_tests(n_items=20_000, n_draws=5, seed=0, frequencies=(0.499, 0.01, 0.0005))
    }
    assert rows["rho"].sound
    assert rows["ap"].sound
    assert not rows["detection"].sound
    assert rows["detection"].missing == pytest.approx(0.25, abs=0.06)  # half of the positives are missed
    assert rows["detection"].extra == pytest.approx(0.0005 / 2, rel=0.01)
    assert rows["ap"].extra == pytest.approx(0.5, abs=0.01)
