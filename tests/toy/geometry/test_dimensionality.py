"""Laws of the dimensionality on random matrices, and hand-computed values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crux.toy.geometry.dimensionality import (
    column_rank,
    dimensionality,
    dimensions_per_feature,
    leverage,
    norms,
    superposition,
    unit_columns,
)


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Any sizes, low rank, dead and tiny columns among them, any scale, both dtypes."""
    m, n, inner = draw(st.integers(1, 6)), draw(st.integers(1, 9)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    W = torch.randn(m, inner, generator=generator).double() @ torch.randn(inner, n, generator=generator).double()
    scales = draw(st.lists(st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 7.0]), min_size=n, max_size=n))
    return (W * torch.tensor(scales) * draw(st.sampled_from([1e-12, 1.0, 1e12]))).to(
        draw(st.sampled_from([torch.float32, torch.float64]))
    )


@settings(deadline=None)
@given(matrices())
def test_dimensionality_is_bounded_by_leverage_and_rank(W: Tensor) -> None:
    D, h, r = dimensionality(W), leverage(W), column_rank(W)
    assert D.dtype == h.dtype == W.dtype
    assert (D >= 0).all()
    assert ((D - h) <= 1e-5).all()
    assert (h <= 1).all()
    assert D.double().sum() <= r + 1e-5
    assert h.double().sum() <= r + 1e-5
    assert r <= W.shape[0]
    assert (D[norms(W) == 0] == 0).all()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3), st.floats(0.1, 5)), min_size=1, max_size=3),
    st.integers(0, 1000),
)
def test_tight_frames_use_their_full_rank(blocks: list[tuple[int, int, float]], seed: int) -> None:
    """Blocks of orthonormal rows at different scales: Σ D_i = rank, and each D_i equals its leverage."""
    torch.manual_seed(seed)
    rows = [torch.linalg.qr(torch.randn(m + more, m).double()).Q.T * scale for m, more, scale in blocks]
    W = torch.block_diag(*rows)
    W = torch.linalg.qr(torch.randn(len(W), len(W)).double()).Q @ W
    torch.testing.assert_close(dimensionality(W), leverage(W), atol=1e-9, rtol=0)
    assert dimensionality(W).sum() == pytest.approx(len(W), abs=1e-9)


def test_a_frame_that_is_not_tight_uses_less_than_its_rank() -> None:
    W = torch.tensor([[1.0, 1.0], [0.0, 1.0]])  # ‖W_i‖² = 1, 2; overlaps 1
    torch.testing.assert_close(dimensionality(W), torch.tensor([1 / 2, 2 / (2 + 1 / 2)]))
    torch.testing.assert_close(superposition(W), torch.tensor([1.0, 1 / 2]))
    torch.testing.assert_close(leverage(W), torch.ones(2))
    assert column_rank(W) == 2
    assert dimensions_per_feature(W) == pytest.approx(2 / 3)


def test_batch_axes_and_a_dead_feature() -> None:
    W = torch.tensor([[2.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    both = torch.stack([W, torch.zeros(2, 3)]).expand(4, 2, 2, 3)
    torch.testing.assert_close(dimensionality(both)[3], torch.tensor([[4 / 5, 1 / 5, 0], [0, 0, 0]]))
    torch.testing.assert_close(superposition(both)[0], torch.tensor([[1.0, 4, 0], [0, 0, 0]]))
    torch.testing.assert_close(norms(both)[1], torch.tensor([[2.0, 1, 0], [0, 0, 0]]))
    torch.testing.assert_close(unit_columns(both)[2, 0], torch.tensor([[1.0, -1, 0], [0, 0, 0]]))
    torch.testing.assert_close(leverage(both)[1], torch.tensor([[4 / 5, 1 / 5, 0], [0, 0, 0]]))
    assert column_rank(both)[0].tolist() == [1, 0]
    assert dimensions_per_feature(both)[0].tolist() == [pytest.approx(2 / 5), math.inf]


def test_data_points_have_a_dimensionality_by_the_same_formula() -> None:
    """The five hidden vectors of a pentagon, computed as h = W x with W the identity."""
    angles = torch.arange(5) * 2 * torch.pi / 5
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    h = torch.eye(2) @ points.T
    torch.testing.assert_close(dimensionality(h), torch.full((5,), 0.4))


@pytest.mark.parametrize("inner", [1, 3, 5])
def test_leverages_add_up_to_the_rank(inner: int) -> None:
    W = torch.randn(5, inner) @ torch.randn(inner, 9)
    assert column_rank(W) == inner
    assert leverage(W).sum() == pytest.approx(inner, abs=1e-4)


def test_a_faint_orthogonal_feature_counts_in_dimensionality_and_rank() -> None:
    W = torch.tensor([[1.0, 0.0], [0.0, 1e-12]])
    assert dimensionality(W).tolist() == [1, 1]
    assert column_rank(W) == 2


def test_dimensionality_equals_the_plain_double_sum() -> None:
    W = torch.randn(3, 4, 7, dtype=torch.float64)
    unit = W / W.norm(dim=1, keepdim=True)
    overlaps = (unit.mT @ W).square()
    torch.testing.assert_close(dimensionality(W), W.square().sum(1) / overlaps.sum(-1))
    off = overlaps * (1 - torch.eye(7))
    torch.testing.assert_close(superposition(W), off.sum(-1))
