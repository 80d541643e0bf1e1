"""Cosines within and between sets, compared with hand-computed values."""

import pytest
import torch

from crux.toy.geometry.sets import (
    cosines_within_sets,
    lowest_cosine_across_sets,
    lowest_cosine_within_sets,
    pairwise_cosines,
    same_set_pairs,
)

W = torch.tensor([[2.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, -3.0]])
"""Set (0, 1) is an orthogonal basis, set (2, 3) its negative."""


def test_two_orthogonal_sets_of_opposite_signs() -> None:
    assert cosines_within_sets(W, n_sets=2).tolist() == [0, 0]
    assert lowest_cosine_across_sets(W, n_sets=2).tolist() == [-1, -1, -1, -1]
    assert lowest_cosine_within_sets(W, n_sets=2).tolist() == [0, 0]
    assert pairwise_cosines(W)[0].tolist() == [1, 0, -1, 0]


def test_sets_consist_of_neighbouring_features() -> None:
    assert same_set_pairs(6, 3).nonzero().tolist() == [[0, 1], [1, 0], [2, 3], [3, 2], [4, 5], [5, 4]]
    assert int(same_set_pairs(20, 2).sum()) == 2 * 10 * 9


def test_collapsed_pairs_and_batches() -> None:
    pairs = torch.tensor([[1.0, 0.5, 1.0, -1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0, 0.0, 1.0]])
    assert lowest_cosine_within_sets(pairs, n_sets=3).tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    assert cosines_within_sets(torch.stack([pairs, pairs]), n_sets=3).shape == (2, 3)
    assert lowest_cosine_across_sets(pairs, n_sets=3).tolist() == pytest.approx(
        [-(0.5**0.5), -(0.5**0.5), 0.5**0.5, -(0.5**0.5), -(0.5**0.5), 0]
    )
