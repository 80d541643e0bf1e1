"""Cosines within and between sets, by hand."""

import pytest
import torch

from crux.toy.geometry.sets import collapsed, cosines, mates, opposite, within

W = torch.tensor([[2.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, -3.0]])
"""Set (0, 1) in an orthogonal basis, set (2, 3) in its negative."""


def test_two_orthogonal_sets_of_opposite_signs() -> None:
    assert within(W, n_sets=2).tolist() == [0, 0]
    assert opposite(W, n_sets=2).tolist() == [-1, -1, -1, -1]
    assert collapsed(W, n_sets=2).tolist() == [0, 0]
    assert cosines(W)[0].tolist() == [1, 0, -1, 0]


def test_mates_are_neighbours() -> None:
    assert mates(6, 3).nonzero().tolist() == [[0, 1], [1, 0], [2, 3], [3, 2], [4, 5], [5, 4]]
    assert int(mates(20, 2).sum()) == 2 * 10 * 9


def test_collapsed_pairs_and_batches() -> None:
    pairs = torch.tensor([[1.0, 0.5, 1.0, -1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0, 0.0, 1.0]])
    assert collapsed(pairs, n_sets=3).tolist() == pytest.approx([1, 0, 0])
    assert within(torch.stack([pairs, pairs]), n_sets=3).shape == (2, 3)
    assert opposite(pairs, n_sets=3).tolist() == pytest.approx(
        [-(0.5**0.5), -(0.5**0.5), 0.5**0.5, -(0.5**0.5), -(0.5**0.5), 0]
    )
