"""Attacks on toy models, compared with hand-computed results."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crux.toy.geometry.adversarial import analytic_attack, error_increase, gradient_attack, overlap_directions
from crux.toy.options import Kind
from crux.toy.superposition import SuperpositionModel, Weights

REACH = torch.tensor([0.1])


def build_model(W: torch.Tensor, b: torch.Tensor) -> SuperpositionModel:
    return SuperpositionModel(Kind.relu_output, Weights(W[None, None], b[None, None], None))


def test_an_attack_on_dedicated_features_costs_the_square_of_the_distance() -> None:
    """Two of three features are represented: moving one of them by λ costs λ²; the third cannot be moved."""
    model = build_model(torch.eye(3)[:2], torch.zeros(3))
    x = torch.tensor([[[0.5, 0.7, 0.0], [0.3, 0.9, 0.0]]])
    shared = analytic_attack(model, x, reach=REACH, shared=True)
    assert shared.shape == (1, 1, 3)
    assert error_increase(model, x, shared).item() == pytest.approx(0.01, rel=1e-4)


def test_an_attack_on_a_digon_costs_twice_the_square() -> None:
    """W = (1, −1), x₁ active: δ = λ (1, −1) / √2 moves the output of feature 1 by √2 λ and does not change the inactive one."""
    model = build_model(torch.tensor([[1.0, -1.0]]), torch.zeros(2))
    x = torch.tensor([[[0.5, 0.0]]])
    delta = analytic_attack(model, x, reach=REACH, shared=True)
    assert delta.abs().flatten().tolist() == pytest.approx([0.1 / 2**0.5] * 2)
    assert (delta[..., 0] * delta[..., 1]).item() < 0
    assert error_increase(model, x, delta).item() == pytest.approx(0.02, rel=1e-4)


def test_overlap_directions_have_norm_one_or_zero() -> None:
    W = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.5, 0.0]])[None]
    norms = overlap_directions(W).norm(dim=-1)
    assert norms[0].tolist() == pytest.approx([1, 1, 0])
    torch.testing.assert_close(overlap_directions(W)[0, 0], torch.tensor([1.0, 0.5, 0.0]) / 1.25**0.5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), shared=st.booleans())
def test_per_input_and_gradient_attacks_are_at_least_as_strong(seed: int, shared: bool) -> None:
    rng = torch.Generator().manual_seed(seed)
    model = build_model(0.7 * torch.randn(2, 5, generator=rng), 0.1 * torch.randn(5, generator=rng))
    x = torch.rand(1, 6, 5, generator=rng)
    one = analytic_attack(model, x, reach=REACH, shared=True)
    each = analytic_attack(model, x, reach=REACH, shared=False)
    with torch.no_grad():
        assert error_increase(model, x, each).mean() >= error_increase(model, x, one).mean() - 1e-6
    start = one if shared else each
    climbed = gradient_attack(model, x, reach=REACH, start=start, steps=10)
    assert climbed.shape == start.shape
    assert (climbed.norm(dim=-1) <= REACH * 1.0001).all()
    with torch.no_grad():
        assert (error_increase(model, x, climbed) >= error_increase(model, x, start) - 1e-6).all()


def test_gradient_attack_finds_the_most_amplified_direction() -> None:
    """If all outputs are positive and exact, the error increases by ‖WᵀW δ‖² ≤ λ² σ⁴ (σ: largest singular value of W)."""
    W = torch.tensor([[1.2, 0.3, 0.0], [0.0, 0.5, 0.9]])
    x = torch.tensor([[[0.5, 0.6, 0.7]]])
    model = build_model(W, (x[0, 0] - W.T @ W @ x[0, 0]))
    start = analytic_attack(model, x, reach=REACH, shared=True)
    climbed = gradient_attack(model, x, reach=REACH, start=start, steps=200)
    best = 0.01 * torch.linalg.svdvals(W)[0] ** 4
    assert error_increase(model, x, climbed).item() == pytest.approx(best.item(), rel=1e-3)
    assert error_increase(model, x, start).item() <= best * 1.0001
