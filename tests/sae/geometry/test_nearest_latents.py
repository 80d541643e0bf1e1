"""Maximal cosines: against a dense product, published chance levels, and constructions with known answers."""

import math

import numpy as np
import pytest
import torch

from crux.config.errors import UserError
from crux.sae.geometry.equal_numbers import find_within_at
from crux.sae.geometry.nearest import (
    NO_LATENT,
    find_candidates,
    find_nearest,
    find_nearest_both_ways,
    normalise_rows,
)


def draw_unit(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return normalise_rows(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


def test_within_is_the_largest_signed_cosine_with_another_row() -> None:
    a = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    found = find_nearest(a)
    assert found.cosines.tolist() == pytest.approx([0.6, 0.6, -0.6])  # not 1.0 for the opposite directions
    assert found.indices.tolist() == [1, 0, 1]
    assert found.mean == pytest.approx(0.2)


@pytest.mark.parametrize("block", [1, 7, 100])
def test_blocks_give_the_same_as_a_dense_product(block: int) -> None:
    a, b = draw_unit(30, 5), draw_unit(23, 5, seed=1)
    dense = (a.double() @ b.double().T).numpy()
    to, back = find_nearest_both_ways(a, b, block=block)
    one_way = find_nearest(a, b, block=block)
    for found in (to, one_way):
        assert found.cosines == pytest.approx(dense.max(1), abs=1e-6)
        assert (found.indices == dense.argmax(1)).all()
    assert back.cosines == pytest.approx(dense.max(0), abs=1e-6)
    assert (back.indices == dense.argmax(0)).all()
    own = (a.double() @ a.double().T).numpy()
    np.fill_diagonal(own, -2)
    assert find_nearest(a, block=block).cosines == pytest.approx(own.max(1), abs=1e-6)
    cosines, indices = find_candidates(a, b, k=4, block=block)
    assert cosines == pytest.approx(-np.sort(-dense, axis=1)[:, :4], abs=1e-6)
    assert (indices[:, 0] == dense.argmax(1)).all()


def test_an_orthonormal_dictionary_has_no_similar_latents() -> None:
    basis = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(0)))[0]
    assert np.abs(find_nearest(basis).cosines).max() < 1e-6


def test_a_dictionary_of_one_latent_has_no_neighbour() -> None:
    found = find_nearest(torch.tensor([[1.0, 0.0]]))
    assert math.isnan(found.cosines[0])
    assert found.indices[0] == NO_LATENT
    nothing = torch.zeros(0, 2)
    assert math.isnan(find_nearest_both_ways(torch.tensor([[1.0, 0.0]]), nothing)[0].mean)


def test_random_directions_have_the_known_chance_level() -> None:
    """The brief's table: 2,048 × 128 within 0.299, across 0.299; 512 × 128 within 0.264."""
    a, b = draw_unit(2048, 128), draw_unit(2048, 128, seed=1)
    assert find_nearest(a).mean == pytest.approx(0.299, abs=0.006)
    to, back = find_nearest_both_ways(a, b)
    assert (to.mean, back.mean) == (pytest.approx(0.299, abs=0.006), pytest.approx(0.299, abs=0.006))
    assert find_nearest(a[:512]).mean == pytest.approx(0.264, abs=0.006)


def test_a_superset_is_similar_in_one_direction_only() -> None:
    a = draw_unit(1024, 128)
    superset = torch.cat([a, draw_unit(1024, 128, seed=1)])
    to, back = find_nearest_both_ways(a, superset)
    chance = find_nearest(draw_unit(1024, 128, seed=2), a).mean
    assert to.mean == pytest.approx(1, abs=1e-6)
    assert back.mean == pytest.approx((1 + chance) / 2, abs=0.005)


def test_directions_without_a_cosine_are_refused() -> None:
    with pytest.raises(UserError, match="direction 1 is zero or not finite"):
        normalise_rows(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(UserError, match="direction 0"):
        normalise_rows(torch.tensor([[math.nan, 0.0]]))
    assert normalise_rows(torch.tensor([[1e-30, 0.0], [3e30, 4e30]])).tolist() == [
        [1, 0],
        [pytest.approx(0.6), pytest.approx(0.8)],
    ]


def test_subsets_have_the_similarity_expected_for_their_size() -> None:
    """Exactly: over all subsets that hold row i, its k-th nearest of N − 1 others is the nearest with a hypergeometric probability."""
    decoder, n = draw_unit(60, 4), 12
    ordered = -np.sort(-(decoder @ decoder.T - 3 * torch.eye(60)).numpy(), axis=1)[:, :-1]
    others, chosen = 59, n - 1
    probabilities = [
        math.comb(others - 1 - k, chosen - 1) / math.comb(others, chosen) for k in range(others - chosen + 1)
    ]
    by_latent = ordered[:, : len(probabilities)] @ np.array(probabilities)
    expected = by_latent.mean()
    drawn = find_within_at(decoder, n=n, seed=0, draws=400)
    assert len(drawn) == 60
    assert np.mean(drawn) == pytest.approx(expected, abs=0.005)
    assert find_nearest(decoder).mean > expected + 0.05  # more latents are more similar
    assert np.abs(drawn - by_latent).max() < 0.1
    assert len(find_within_at(decoder, n=2, seed=0, draws=3)) <= 6
    whole = find_within_at(decoder, n=60, seed=0)
    assert (whole == find_nearest(decoder).cosines).all()
    assert np.array_equal(find_within_at(decoder, n=n, seed=3), find_within_at(decoder, n=n, seed=3))
    with pytest.raises(UserError, match="60 latents have no subset of 61"):
        find_within_at(decoder, n=61, seed=0)
