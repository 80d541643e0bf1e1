"""The exact loss compared with other ways to integrate, and its gradient at special geometries of the features."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import qmc
from torch import Tensor

from crux.toy.exact.activity import (
    Activity,
    enumerate_anticorrelated,
    enumerate_correlated,
    enumerate_independent,
    enumerate_one_active,
)
from crux.toy.exact.loss import feature_moments, independent_feature_moments, linear_loss, relu_loss, tied_loss
from tests.toy.exact.test_cube_moments import sum_corners

F64 = torch.float64


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def polygon(k: int, norm: float, n: int) -> Tensor:
    """Return k columns on a regular polygon in the plane; the other n − k columns are zero."""
    angle = 2 * math.pi * torch.arange(k, dtype=F64) / k
    return torch.cat([norm * torch.stack([angle.cos(), angle.sin()]), torch.zeros(2, n - k, dtype=F64)], 1)


def loss_from_corner_sums(W: Tensor, b: Tensor, importance: Tensor, activity: Activity, signed: bool) -> float:
    """Return the loss of one instance by a loop over patterns and outputs, with corner sums in 80 digits."""
    A, total = W.T @ W, 0.0
    for pattern, weight in zip(activity.patterns, activity.weights.tolist(), strict=True):
        active = pattern.nonzero()[:, 0].tolist()
        for i in range(len(b)):
            features = [j for j in active if j != i] + [i] * (i in active)
            a, start = A[i, features].tolist(), b[i].item()
            if signed:
                start, a = start - sum(a), [2 * v for v in a]
            mean, square, own = sum_corners(a, start) if a else (0.0, max(0.0, start) ** 2, 0.0)
            error = float(square)
            if i in active:
                error += 1 / 3 - 2 * float(2 * own - mean if signed else own)
            total += weight * importance[i].item() * error
    return total


KINDS: dict[str, Callable[[], Activity]] = {
    "independent": lambda: enumerate_independent(torch.tensor([0.05, 0.3, 0.5, 0.9, 0.2, 0.6], dtype=F64)),
    "correlated": lambda: enumerate_correlated(torch.tensor([0.05, 0.3], dtype=F64), set_size=3),
    "anticorrelated": lambda: enumerate_anticorrelated(torch.tensor([0.2, 0.7, 0.1], dtype=F64), set_size=2),
    "one_active": lambda: enumerate_one_active(torch.tensor([0.3, 0.1, 0.1, 0.2, 0.15, 0.15], dtype=F64)),
}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_six_features_agree_with_corner_sums(kind: str, signed: bool) -> None:
    W, b, importance = draw(3, 6, seed=1), 0.3 * draw(6, seed=2), draw(6, seed=3).exp()
    activity = KINDS[kind]()
    computed = tied_loss(W, b, importance=importance, activity=activity, signed=signed)
    assert computed.item() == pytest.approx(loss_from_corner_sums(W, b, importance, activity, signed), abs=1e-10)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_five_features_agree_with_corner_sums(seed: int, signed: bool) -> None:
    W, b, activity = (
        draw(2, 5, seed=seed),
        0.3 * draw(5, seed=10 + seed),
        enumerate_independent(torch.full((5,), 0.4, dtype=F64)),
    )
    computed = tied_loss(W, b, importance=torch.ones(5, dtype=F64), activity=activity, signed=signed)
    assert computed.item() == pytest.approx(loss_from_corner_sums(W, b, torch.ones(5), activity, signed), abs=1e-10)


@pytest.mark.parametrize("signed", [False, True])
def test_exact_loss_agrees_with_sampled_data(signed: bool) -> None:
    """The comparison shares no formula: 2¹⁹ Sobol points of (active or not, magnitude), with an error of about 1e-5."""
    n = 5
    W, b, density = (
        polygon(5, 1.1, n) + 0.1 * draw(2, n, seed=4),
        -0.2 + 0.2 * draw(n, seed=5),
        torch.full((n,), 0.3, dtype=F64),
    )
    u = torch.as_tensor(qmc.Sobol(2 * n, rng=0).random_base2(19))
    x = torch.where(u[:, :n] < density, 2 * u[:, n:] - 1 if signed else u[:, n:], 0)
    truth = (x - (x @ (W.T @ W) + b).relu()).square().mean(0).sum()
    computed = tied_loss(
        W, b, importance=torch.ones(n, dtype=F64), activity=enumerate_independent(density), signed=signed
    )
    assert computed.item() == pytest.approx(truth.item(), abs=1e-4)


def test_relu_loss_accepts_any_matrix() -> None:
    """A is not symmetric; the comparison uses Sobol points."""
    A, b = 0.5 * draw(5, 5, seed=6) + torch.eye(5, dtype=F64), 0.2 * draw(5, seed=7)
    u = torch.as_tensor(qmc.Sobol(5, rng=0).random_base2(18))
    truth = (u - (u @ A.T + b).relu()).square().mean(0).sum()
    always = Activity(torch.ones(1, 5, dtype=torch.bool), torch.ones(1, dtype=F64))
    computed = relu_loss(A, b, importance=torch.ones(5, dtype=F64), activity=always, signed=False)
    assert computed.item() == pytest.approx(truth.item(), abs=1e-4)


def test_broadcasts_over_instances_densities_and_importances() -> None:
    W, b = draw(7, 1, 2, 4, seed=8), draw(7, 1, 4, seed=9)
    density, importance = torch.rand(3, 4, dtype=F64), torch.rand(5, 1, 1, 4, dtype=F64)
    whole = tied_loss(W, b, importance=importance, activity=enumerate_independent(density), signed=False)
    assert whole.shape == (5, 7, 3)
    one = tied_loss(
        W[4, 0], b[4, 0], importance=importance[2, 0, 0], activity=enumerate_independent(density[1]), signed=False
    )
    torch.testing.assert_close(whole[2, 4, 1], one, rtol=1e-12, atol=1e-14)


def test_loss_is_summed_over_features() -> None:
    """A model that represents nothing, with b = 0, has the loss Σ I_i p_i / 3."""
    density, importance = torch.tensor([0.1, 0.4, 0.7], dtype=F64), torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    zero = torch.zeros(3, dtype=F64)
    for signed in (False, True):
        computed = tied_loss(
            zero.new_zeros(1, 3), zero, importance=importance, activity=enumerate_independent(density), signed=signed
        )
        assert computed.item() == pytest.approx((importance * density).sum().item() / 3)


SPECIAL = {
    "dead features": (
        torch.tensor([[1.0, -1, 0, 0, 0], [0, 0, 1, -1, 0]], dtype=F64),
        torch.full((5,), 0.1, dtype=F64),
    ),
    "all dead": (torch.zeros(2, 5, dtype=F64), torch.full((5,), 0.2, dtype=F64)),
    "pentagon": (polygon(5, 1.13, 5), torch.full((5,), -0.24, dtype=F64)),
    "square": (polygon(4, 1.0, 5), torch.tensor([-0.1, -0.1, -0.1, -0.1, 0.2], dtype=F64)),
    "twins": (torch.tensor([[1.0, 1, 1, -1, 0], [0, 0, 0, 0, 1]], dtype=F64), torch.full((5,), 0.05, dtype=F64)),
}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", SPECIAL)
def test_gradcheck_at_special_points(name: str, signed: bool) -> None:
    W, b = (t.clone().requires_grad_() for t in SPECIAL[name])
    density = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=F64)

    def loss(W: Tensor, b: Tensor) -> Tensor:
        return tied_loss(
            W, b, importance=torch.ones(5, dtype=F64), activity=enumerate_independent(density), signed=signed
        )

    assert torch.autograd.gradcheck(loss, (W, b), atol=1e-7)


def test_gradient_is_finite_at_the_kink() -> None:
    """W = 0 and b = 0: every pre-activation is at the kink."""
    W, b = torch.zeros(2, 5, dtype=F64, requires_grad=True), torch.zeros(5, dtype=F64, requires_grad=True)
    density = torch.full((5,), 0.2, dtype=F64)
    loss = tied_loss(W, b, importance=torch.ones(5, dtype=F64), activity=enumerate_independent(density), signed=False)
    loss.backward()
    assert loss.item() == pytest.approx(1 / 3)
    assert W.grad is not None
    assert b.grad is not None
    assert W.grad.isfinite().all()
    assert b.grad.isfinite().all()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_linear_loss_equals_relu_loss_if_no_output_is_clipped(kind: str, signed: bool) -> None:
    """With b = 9 every pre-activation is positive, and the two losses agree."""
    activity, W = KINDS[kind](), 0.5 * draw(2, 6, seed=11)
    b, importance = torch.full((6,), 9.0, dtype=F64), draw(6, seed=12).exp()
    mean, second = feature_moments(activity, signed=signed)
    computed = linear_loss(W.T @ W, b, importance=importance, mean=mean, second=second)
    torch.testing.assert_close(computed, tied_loss(W, b, importance=importance, activity=activity, signed=signed))


def test_linear_loss_of_many_features_equals_its_formula() -> None:
    """n = 50, m = 20: represented features have no loss; a dropped one with b = p/2 has p/3 − p²/4."""
    density, importance = torch.full((50,), 0.3, dtype=F64), 0.9 ** torch.arange(50, dtype=F64)
    kept = (torch.arange(50) < 20).to(F64)
    mean, second = independent_feature_moments(density, signed=False)
    computed = linear_loss(torch.diag(kept), (1 - kept) * density / 2, importance=importance, mean=mean, second=second)
    assert computed.item() == pytest.approx((0.1 - 0.0225) * importance[20:].sum().item())


@pytest.mark.parametrize("signed", [False, True])
def test_moments_of_independent_features_equal_those_of_their_patterns(signed: bool) -> None:
    density = torch.tensor([0.1, 0.6, 1.0], dtype=F64)
    for computed, truth in zip(
        independent_feature_moments(density, signed=signed),
        feature_moments(enumerate_independent(density), signed=signed),
        strict=True,
    ):
        torch.testing.assert_close(computed, truth)


@pytest.mark.parametrize(
    ("density", "norm", "bias", "published"),
    [
        (0.2, 1.034, -0.133, 0.07959),
        (0.1, 1.099, -0.208, 0.02631),
        (0.05, 1.133, -0.244, 0.008904),
        (0.01, 1.163, -0.275, 0.001001),
    ],
)
def test_pentagons_have_their_published_losses(density: float, norm: float, bias: float, published: float) -> None:
    """Reference 1.4(5), its norms and biases in three digits."""
    activity = enumerate_independent(torch.full((5,), density, dtype=F64))
    computed = tied_loss(
        polygon(5, norm, 5),
        torch.full((5,), bias, dtype=F64),
        importance=torch.ones(5, dtype=F64),
        activity=activity,
        signed=False,
    )
    assert computed.item() == pytest.approx(published, rel=1e-3)
