"""Ranks: random, and evenly spread over the order in which the pieces are read."""

import numpy as np
import pytest

from crux.text.ranks import N_LEVELS, Ranks


@pytest.fixture(scope="module")
def ranks() -> np.ndarray:
    """Ranks of 2¹⁴ pieces."""
    order = Ranks()
    return np.array([order.next_rank(b"document") for _ in range(1 << 14)], np.uint64)


@pytest.mark.parametrize("k", [1, 2, 3, 7, N_LEVELS])
def test_every_block_of_pieces_gives_exactly_its_share(ranks, k):
    low = ranks < np.uint64(1 << (64 - k))
    assert (low.reshape(-1, 1 << k).sum(axis=1) == 1).all()


def test_every_place_in_a_block_is_as_likely(ranks):
    # a text with a period of 2, 4 or 8 rows must not be distorted: of n blocks, each place is taken n/2ᵏ ± √(n/2ᵏ) times
    for k in (1, 2, 3):
        taken = (ranks < np.uint64(1 << (64 - k))).reshape(-1, 1 << k).sum(axis=0)
        expected = len(ranks) / 4**k
        assert np.abs(taken - expected).max() < 5 * np.sqrt(expected)


def test_ranks_differ_and_are_reproducible(ranks):
    assert len(set(ranks.tolist())) == len(ranks)
    order = Ranks()
    assert [order.next_rank(b"document") for _ in range(100)] == ranks[:100].tolist()
