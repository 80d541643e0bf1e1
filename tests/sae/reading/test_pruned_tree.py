"""Rules of a pruned suffix tree for any budget, against a slow implementation of one latent at a time."""

import numpy as np
import pytest
import scipy.sparse

from crux.sae.reading import pruned_tree
from crux.sae.reading.pruned_tree import choose_nodes, rank_nodes, refit_nodes
from crux.sae.reading.rules import predict_dense
from crux.sae.reading.sparse_codes import SparseCodes
from crux.sae.reading.suffix_means import predict_from_some, rank_suffixes
from crux.sae.reading.suffix_tree import grow_suffix_tree

RNG = np.random.default_rng(0)
OPTIONS = {"shrinkage": 2.0, "min_count": 3, "depth": 3}


def make_text(n_windows: int) -> tuple[np.ndarray, np.ndarray]:
    windows = RNG.integers(0, 5, (n_windows, 12))
    begins = RNG.random(windows.shape) < 0.05
    begins[:, 0] = True
    return windows, begins.reshape(-1)


FIT, HELD_OUT = make_text(60), make_text(10)
TOKENS = FIT[0].reshape(-1)
DENSE = RNG.gamma(2, 1, (720, 6)) * (RNG.random((720, 6)) < 0.1 + 0.6 * (TOKENS[:, None] == [0, 1, 2, 3, 4, 0]))
DENSE[:, 5] = 0  # a dead latent
MATRIX = scipy.sparse.csr_matrix(DENSE.astype(np.float32))
CODES = SparseCodes(MATRIX.indptr.astype(np.int64), MATRIX.indices, MATRIX.data, 6)
TREE = grow_suffix_tree(*FIT, vocab=5)


def gains_of(code: np.ndarray, depth: int = 3) -> np.ndarray:
    """Return the gain of every node for one latent, from its tokens; 0 for rare and for too deep nodes."""
    means, gains = np.zeros(TREE.n_nodes), np.zeros(TREE.n_nodes)
    means[0] = code.mean()
    for node in range(1, TREE.first[depth]):
        here = code[(TREE.at == node).any(1)]
        means[node] = (here.sum() + 2 * means[TREE.parent[node]]) / (len(here) + 2)
        if len(here) >= 3:
            gains[node] = len(here) * (means[node] - means[TREE.parent[node]]) ** 2
    return gains


@pytest.mark.parametrize("block", [1, 10**9])
def test_the_nodes_of_each_latent_are_those_with_the_largest_gains(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruned_tree, "BLOCK", block)
    ranked = rank_nodes(TREE, CODES, k=7, **OPTIONS)
    for latent in range(5):
        gains = gains_of(MATRIX.toarray()[:, latent].astype(np.float64))
        mine = ranked.latents == latent
        np.testing.assert_array_equal(ranked.nodes[mine], np.argsort(-gains, kind="stable")[:7])
        np.testing.assert_allclose(ranked.gains[mine], np.sort(gains)[::-1][:7])
    assert 5 not in ranked.latents
    shorter = rank_nodes(TREE, CODES, k=3, **OPTIONS)
    for one, other in zip(shorter, ranked.first(3), strict=True):
        np.testing.assert_array_equal(one, other)
    two = rank_nodes(TREE, CODES, k=10_000, shrinkage=2.0, min_count=3, depth=2)
    assert two.nodes.max() < TREE.first[2]
    np.testing.assert_array_equal((two.latents == 0).sum(), (gains_of(MATRIX.toarray()[:, 0], depth=2) > 0).sum())


@pytest.mark.parametrize("block", [1, 10**9])
def test_a_budget_for_all_latents_goes_to_the_largest_weighted_gains(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruned_tree, "BLOCK", block)
    weights = np.array([1.0, 0.0, 2.0, 30.0, 1.0, 5.0])
    kept = choose_nodes(TREE, CODES, total=40, weights=weights, **OPTIONS)
    gains = np.stack([gains_of(MATRIX.toarray()[:, i].astype(np.float64)) for i in range(6)])
    least = np.sort((gains * weights[:, None]).ravel())[-40]
    expected = {(i, node) for i, node in np.argwhere(gains * weights[:, None] >= least).tolist()}
    assert len(kept.nodes) == 40
    assert set(zip(kept.latents.tolist(), kept.nodes.tolist(), strict=True)) == expected
    assert (np.diff(kept.latents) >= 0).all()
    few = choose_nodes(TREE, CODES, total=0, weights=weights, **OPTIONS)
    assert len(few.nodes) == 0
    np.testing.assert_allclose(
        predict_dense(refit_nodes(TREE, few, CODES, shrinkage=2.0), *HELD_OUT)[3], MATRIX.toarray().mean(0), rtol=1e-5
    )


@pytest.mark.parametrize("k", [1, 6, 40])
def test_predicted_codes_are_means_of_the_tokens_that_reach_no_longer_kept_suffix(k: int) -> None:
    kept = rank_nodes(TREE, CODES, k=k, **OPTIONS)
    rules = refit_nodes(TREE, kept, CODES, shrinkage=2.0)
    predicted = predict_dense(rules, *HELD_OUT)
    found = TREE.find(*HELD_OUT)
    for latent in range(6):
        mine = {0, *kept.nodes[kept.latents == latent].tolist()}
        code = MATRIX.toarray()[:, latent].astype(np.float64)

        def longest(nodes: np.ndarray, mine: set[int] = mine) -> int:
            return max([node for node in nodes.tolist() if node in mine], default=0)

        owners = np.array([longest(nodes) for nodes in TREE.at])
        values = {0: code.mean()}
        for node in sorted(mine):
            up = int(TREE.parent[node])
            while up > 0 and up not in mine:
                up = int(TREE.parent[up])
            ours = code[owners == node]
            values[node] = (ours.sum() + 2 * values[max(up, 0)]) / (len(ours) + 2)
        np.testing.assert_allclose(predicted[:, latent], [values[longest(nodes)] for nodes in found], atol=1e-6)
    np.testing.assert_array_equal(rules.counts, TREE.counts[kept.nodes])
    np.testing.assert_allclose(rules.mass, MATRIX.toarray().sum(0, dtype=np.float64))


def test_rules_of_the_same_suffixes_for_all_latents_decode_to_the_means_of_the_reconstruction() -> None:
    """The identity on which the comparison with the dictionary-free line rests: both are linear in the codes."""
    decoder, bias = RNG.standard_normal((6, 4)), RNG.standard_normal(4)
    x_hat = (MATRIX @ decoder + bias).astype(np.float32)
    suffixes = np.sort(rank_suffixes(TREE, x_hat, shrinkage=2.0, min_count=3, depth=3)[:30])
    member = TREE.indicator()[suffixes] @ MATRIX.astype(np.float64)
    pairs = np.tile(suffixes, 6)
    kept = pruned_tree.RankedNodes(np.repeat(np.arange(6), 30), pairs, np.ones(180), member.toarray().T.ravel())
    decoded = predict_dense(refit_nodes(TREE, kept, CODES, shrinkage=2.0), *HELD_OUT) @ decoder + bias
    means = predict_from_some(TREE, suffixes, x_hat, TREE.find(*HELD_OUT), shrinkage=2.0)
    np.testing.assert_allclose(decoded, means, atol=1e-5)
