"""Sparse probing on planted labels, shuffled labels, and labels that only some of the features know."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from sklearn.metrics import roc_auc_score

from crux.config.errors import UserError
from crux.sae.reading.harvest import Harvest, ReadText, find_text_begins
from crux.sae.reading.probing import _assign_folds, area_under_roc, probe_latents, select_features
from crux.sae.reading.probing_labels import ProbeLabels
from crux.sae.reading.random_codes import random_topk_codes
from crux.sae.reading.sparse_codes import SparseCodes

CONTEXT, N_LATENTS, D, END = 32, 40, 6, 0


def make_codes(rng: np.random.Generator, n_tokens: int, *, planted: np.ndarray | None = None) -> SparseCodes:
    """Return codes that fire at random on 5 % of the tokens; latent 7 fires on those with a planted label, and on 1 % of the others."""
    fires = rng.random((n_tokens, N_LATENTS)) < 0.05
    if planted is not None:
        fires[:, 7] = planted | (rng.random(n_tokens) < 0.01)
    values = np.where(fires, rng.gamma(4, 0.25, fires.shape), 0).astype(np.float32)
    matrix = scipy.sparse.csr_matrix(values)
    return SparseCodes(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data, N_LATENTS)


def make_side(rng: np.random.Generator, n_windows: int) -> tuple[ReadText, dict[str, np.ndarray]]:
    """Return a side of a harvest with labels that depend on latent 7 (`planted`), on the token, on a direction of x, and on nothing."""
    windows = rng.integers(1, 30, (n_windows, CONTEXT))
    windows[rng.random(windows.shape) < 0.02] = END
    n = windows.size
    planted = rng.random(n) < 0.1
    x = rng.standard_normal((n, D)).astype(np.float32)
    read = ReadText(windows, find_text_begins(windows, END), make_codes(rng, n, planted=planted), x)
    labels = {
        "planted": planted,
        "token": windows.ravel() % 3 == 0,
        "direction": x @ np.ones(D) > 1,
        "shuffled": rng.permutation(planted),
        "rare": np.arange(n) == 5,
    }
    return read, {name: values.astype(np.int8) for name, values in labels.items()}


def make_harvest(seed: int = 0, n_windows: int = 500) -> tuple[Harvest, ProbeLabels, ProbeLabels]:
    rng = np.random.default_rng(seed)
    (fit, fit_labels), (held_out, labels) = make_side(rng, n_windows), make_side(rng, n_windows)
    nothing: frozenset[str] = frozenset()
    return (
        Harvest(fit, held_out, END, Path()),
        ProbeLabels(fit_labels, nothing),
        ProbeLabels(labels, nothing),
    )


@pytest.fixture(scope="module")
def table():
    harvest, fit, held_out = make_harvest()
    rng = np.random.default_rng(1)
    other = (make_codes(rng, harvest.fit.n_tokens), make_codes(rng, harvest.held_out.n_tokens))
    frame = probe_latents(
        harvest, fit=fit, held_out=held_out, n_train=3000, n_test=3000, seed=0, dictionaries={"other": other}
    )
    return frame.set_index(["task", "features", "k"])


def test_a_label_planted_in_one_latent_is_found_by_one_latent(table) -> None:
    planted = table.loc["planted"]
    assert planted.loc[("latents", 1), "auroc"] >= 0.99
    assert planted.loc[("latents", 1), "accuracy"] >= 0.95  # the threshold misses some small codes
    assert planted.loc[("latents", 5), "auroc"] >= 0.99
    for features in ("other", "coordinates", "pca", "random_topk"):
        assert planted.loc[(features, 1), "auroc"] == pytest.approx(0.5, abs=0.05)
    assert planted.loc[("latents", 1), "n_splits"] == 5
    assert planted.loc[("latents", 1), "share"] == pytest.approx(0.1, abs=0.01)


def test_shuffled_labels_score_at_chance(table) -> None:
    shuffled = table.loc["shuffled"]
    np.testing.assert_allclose(shuffled["auroc"], 0.5, atol=0.03)
    np.testing.assert_allclose(shuffled["accuracy"], 0.5, atol=0.03)


def test_each_baseline_knows_its_label(table) -> None:
    assert table.loc[("token", "token", 0), "auroc"] == pytest.approx(1, abs=1e-3)
    assert table.loc[("token", "token", 0), "accuracy"] == pytest.approx(1, abs=1e-3)
    assert table.loc[("token", "latents", 1), "auroc"] == pytest.approx(0.5, abs=0.03)
    direction = table.loc["direction"]
    assert direction.loc[("dense", 0), "auroc"] > 0.999
    # a sum of six normal coordinates, of which one is known: Φ-type AUROC well above chance and below that of the sum
    aurocs = [direction.loc[("coordinates", k), "auroc"] for k in (1, 2, 5)]
    assert 0.65 < aurocs[0] < aurocs[1] < aurocs[2] < 0.999
    assert direction.loc[("dense", 0), "gain"] == pytest.approx(1)
    assert direction.loc[("coordinates", 1), "gain"] == pytest.approx(
        (aurocs[0] - 0.5) / (direction.loc[("dense", 0), "auroc"] - 0.5)
    )


def test_intervals_and_rare_labels(table) -> None:
    row = table.loc[("direction", "coordinates", 1)]
    assert 0 < row["auroc_high"] - row["auroc"] == pytest.approx(row["auroc"] - row["auroc_low"])
    assert row["auroc_high"] - row["auroc_low"] < 0.1
    rare = table.loc["rare"]
    assert list(rare["n_splits"]) == [0]
    assert rare["auroc"].isna().all()


def test_the_same_seed_gives_the_same_table() -> None:
    harvest, fit, held_out = make_harvest(n_windows=120)
    first, second = (
        probe_latents(harvest, fit=fit, held_out=held_out, n_train=600, n_test=600, seed=3) for _ in range(2)
    )
    assert first.equals(second)


def test_selection_is_by_the_difference_of_means_in_pooled_standard_deviations() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(200) < 0.3
    dense = rng.standard_normal((200, 5))
    dense[:, 3] += 2 * labels
    dense[:, 1] *= 100  # the scale does not matter
    dense[:, 2] = 7.0  # a constant
    one, zero = dense[labels], dense[~labels]
    pooled = (len(one) * one.var(0) + len(zero) * zero.var(0)) / len(dense)
    pooled[2] = 1
    expected = np.argsort(-np.abs(one.mean(0) - zero.mean(0)) / np.sqrt(pooled))
    np.testing.assert_array_equal(select_features(dense, labels, k=5), expected)
    np.testing.assert_array_equal(select_features(scipy.sparse.csr_matrix(dense), labels, k=5), expected)
    assert expected[0] == 3
    assert expected[-1] == 2


def test_documents_stay_whole_in_a_split() -> None:
    read, _ = make_side(np.random.default_rng(0), 100)
    folds = _assign_folds(read, END, 5, np.random.default_rng(1))
    documents = np.cumsum(read.tokens == END) - (read.tokens == END)
    for document in np.unique(documents):
        assert len(np.unique(folds[documents == document])) == 1
    assert np.bincount(folds).min() > 0.15 * read.n_tokens
    stretches = _assign_folds(read, None, 5, np.random.default_rng(1))
    assert (np.diff(stretches) >= 0).all()
    assert np.bincount(stretches).tolist() == [640] * 5


def test_random_codes_are_those_of_a_topk_sae() -> None:
    x = np.random.default_rng(0).standard_normal((50, 8))
    (codes, again) = random_topk_codes((x, x[:7]), mean=x.mean(0), n_latents=30, k=4, seed=1)
    np.testing.assert_array_equal(codes.toarray()[:7], again.toarray())
    directions = np.random.default_rng(1).standard_normal((30, 8), dtype=np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    products = (x - x.mean(0)) @ directions.T
    for row, found in zip(products, codes.toarray(), strict=True):
        expected = np.where(row >= np.sort(row)[-4], np.maximum(row, 0), 0)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_both_sides_need_the_same_tasks() -> None:
    harvest, fit, held_out = make_harvest(n_windows=10)
    fewer = held_out._replace(labels={"planted": held_out.labels["planted"]})
    with pytest.raises(UserError, match="both sides need the same tasks"):
        probe_latents(harvest, fit=fit, held_out=fewer, n_train=10, n_test=10, seed=0)


@pytest.mark.parametrize("levels", [2, 7, 10**6])
def test_the_area_under_the_curve_is_that_of_scikit_learn(levels: int) -> None:
    rng = np.random.default_rng(levels)
    y, scores = rng.random(400) < 0.2, rng.integers(0, levels, 400).astype(float)
    assert area_under_roc(y, scores) == pytest.approx(roc_auc_score(y, scores), abs=1e-12)
