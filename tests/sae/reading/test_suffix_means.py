"""The dictionary-free line: means by suffix, against a slow implementation that groups tokens by their last tokens."""

import numpy as np
import pytest

from crux.sae.reading import suffix_means
from crux.sae.reading.suffix_means import predict_from_all, predict_from_some, rank_suffixes
from crux.sae.reading.suffix_tree import SuffixTree, grow_suffix_tree

RNG = np.random.default_rng(0)
KAPPA = 2.0
Suffix = tuple[int, ...]


def make_text(n_windows: int) -> tuple[np.ndarray, np.ndarray]:
    windows = RNG.integers(0, 5, (n_windows, 12))
    begins = RNG.random(windows.shape) < 0.05
    begins[:, 0] = True
    return windows, begins.reshape(-1)


def suffixes_at(windows: np.ndarray, begins: np.ndarray, *, depth: int) -> list[list[Suffix]]:
    """Return the suffixes of each token, the empty one first; the oldest token comes first in each."""
    tokens, found = windows.reshape(-1), []
    for t in range(len(tokens)):
        here: list[Suffix] = [()]
        for n in range(1, depth + 1):
            if begins[t - n + 2 : t + 1].any() or t - n + 1 < 0:
                break
            here.append(tuple(tokens[t - n + 1 : t + 1].tolist()))
        found.append(here)
    return found


def shrunk_means(at: list[list[Suffix]], x: np.ndarray) -> tuple[dict[Suffix, np.ndarray], dict[Suffix, int]]:
    sums: dict[Suffix, np.ndarray] = {}
    counts: dict[Suffix, int] = {}
    for here, value in zip(at, x, strict=True):
        for s in here:
            sums[s], counts[s] = sums.get(s, 0) + value, counts.get(s, 0) + 1
    means: dict[Suffix, np.ndarray] = {(): sums[()] / counts[()]}
    for s in sorted(sums, key=len)[1:]:
        means[s] = (sums[s] + KAPPA * means[s[1:]]) / (counts[s] + KAPPA)
    return means, counts


FIT, HELD_OUT = make_text(40), make_text(10)
X = (RNG.standard_normal((480, 3)) + FIT[0].reshape(-1, 1)).astype(np.float32)
TREE: SuffixTree = grow_suffix_tree(*FIT, vocab=5)


def node_of(s: Suffix) -> int:
    return {
        tuple(t for t in tokens[::-1] if t >= 0): i
        for i, tokens in enumerate(TREE.tokens_of(np.arange(TREE.n_nodes)).tolist())
    }[s]


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("block", [1, 10**9])
def test_every_held_out_token_gets_the_shrunk_mean_of_its_longest_known_suffix(
    depth: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suffix_means, "BLOCK", block)
    means, _ = shrunk_means(suffixes_at(*FIT, depth=depth), X.astype(np.float64))
    expected = [means[[s for s in here if s in means][-1]] for here in suffixes_at(*HELD_OUT, depth=depth)]
    predicted = predict_from_all(TREE, X, TREE.find(*HELD_OUT), shrinkage=KAPPA, depth=depth)
    np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", [2, 3])
def test_suffixes_are_ranked_by_what_they_add_to_their_parents(depth: int) -> None:
    means, counts = shrunk_means(suffixes_at(*FIT, depth=depth), X.astype(np.float64))
    gains = {s: counts[s] * ((means[s] - means[s[1:]]) ** 2).sum() for s in means if s and counts[s] >= 3}
    ranked = rank_suffixes(TREE, X, shrinkage=KAPPA, min_count=3, depth=depth)
    assert ranked.tolist() == [node_of(s) for s in sorted(gains, key=lambda s: -gains[s])]


@pytest.mark.parametrize("m", [0, 1, 20, 10_000])
def test_kept_suffixes_are_refitted_on_the_tokens_that_reach_no_longer_one(m: int) -> None:
    ranked = rank_suffixes(TREE, X, shrinkage=KAPPA, min_count=3, depth=3)[:m]
    kept: set[Suffix] = {()} | {tuple(t for t in tokens[::-1] if t >= 0) for tokens in TREE.tokens_of(ranked).tolist()}

    def longest(here: list[Suffix]) -> Suffix:
        return [s for s in here if s in kept][-1]

    owners = [longest(here) for here in suffixes_at(*FIT, depth=3)]
    values: dict[Suffix, np.ndarray] = {(): X.mean(0, dtype=np.float64)}
    for s in sorted(kept, key=len):
        ours = X[[owner == s for owner in owners]].astype(np.float64)
        towards = values[()] if s == () else values[longest([s[n:] for n in range(len(s), 0, -1)])]
        values[s] = (ours.sum(0) + KAPPA * towards) / (len(ours) + KAPPA)
    expected = [values[longest(here)] for here in suffixes_at(*HELD_OUT, depth=3)]
    predicted = predict_from_some(TREE, ranked, X, TREE.find(*HELD_OUT), shrinkage=KAPPA)
    np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-5)
