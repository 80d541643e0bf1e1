"""The one-active loss against the pattern enumeration and the published k-gons (docs/reference/learning_coefficients.md §4.2)."""

import math

import pytest
import torch
from torch import Tensor

from crux.toy.exact.activity import enumerate_one_active
from crux.toy.exact.lbfgs import minimise
from crux.toy.exact.loss import tied_loss
from crux.toy.exact.one_active import one_active_relu_loss, one_active_tied_loss

F64 = torch.float64


def build_k_gon(k: int, c: int, norm: float, bias: float, dead_bias: list[float]) -> tuple[Tensor, Tensor]:
    """Return a k-gon among c features; the others have W = 0 and the given bias."""
    angle = 2 * math.pi * torch.arange(k, dtype=F64) / k
    W = torch.zeros(2, c, dtype=F64)
    W[:, :k] = norm * torch.stack([angle.cos(), angle.sin()])
    return W, torch.tensor([bias] * k + dead_bias, dtype=F64)


def uniform_loss(W: Tensor, b: Tensor) -> Tensor:
    """Return the loss if each of the c features is the active one with probability 1/c."""
    c = b.shape[-1]
    ones = torch.ones(c, dtype=F64)
    return one_active_tied_loss(W, b, importance=ones, probabilities=ones / c, signed=False)


GONS = {  # k: (norm l*, bias b*, and h_k = 3 k · loss) of the optimal k-gon without dead features
    4: (1, 0, 0),
    5: (1.1704596, -0.2822973, 0.237384),
    6: (1.3205263, -0.6181351, 0.867463),
    7: (1.4483938, -0.9669063, 1.748695),
    8: (1.5504497, -1.2911926, 2.773102),
}


@pytest.mark.parametrize("k", GONS)
@pytest.mark.parametrize("dead", [0, 1, 2, 3])
def test_k_gons_have_their_published_losses_and_biases(k: int, dead: int) -> None:
    """L(k, c) = (h_k + c − k) / (3c) if dead features have a negative bias."""
    norm, bias, h = GONS[k]
    c = k + dead
    computed = uniform_loss(*build_k_gon(k, c, norm, bias, [-0.1] * dead))
    assert computed.item() == pytest.approx((h + c - k) / (3 * c), abs=2e-7)


@pytest.mark.parametrize(
    ("k", "c", "published"),
    [
        (5, 5, 0.0158256),
        (6, 6, 0.0481924),
        (7, 7, 0.0832712),
        (8, 8, 0.1155459),
        (5, 6, 0.068744),
        (5, 7, 0.106542),
        (6, 7, 0.088927),
        (5, 8, 0.134891),
        (4, 5, 0.0666667),
        (4, 6, 0.1111111),
    ],
)
def test_losses_equal_published_values(k: int, c: int, published: float) -> None:
    norm, bias, _ = GONS[k]
    assert uniform_loss(*build_k_gon(k, c, norm, bias, [-0.1] * (c - k))).item() == pytest.approx(published, abs=6e-7)


@pytest.mark.parametrize(
    ("k", "c", "n_plus", "published"),
    [(5, 6, 1, 0.061799), (4, 5, 1, 0.0566667), (4, 6, 1, 0.1041667), (4, 6, 2, 0.0972222)],
)
def test_optimal_bias_of_a_dead_feature_lowers_the_loss(k: int, c: int, n_plus: int, published: float) -> None:
    """A bias of 1/(2c) on a dead feature lowers the loss by 1/(4c²), for one feature (k+ in the paper) and for two (k++)."""
    norm, bias, h = GONS[k]
    dead = [1 / (2 * c)] * n_plus + [-0.1] * (c - k - n_plus)
    computed = uniform_loss(*build_k_gon(k, c, norm, bias, dead)).item()
    assert computed == pytest.approx(published, abs=6e-7)
    assert computed == pytest.approx((h + c - k) / (3 * c) - n_plus / (4 * c**2), abs=2e-7)


@pytest.mark.parametrize("k", [5, 6, 7, 8])
def test_published_k_gons_are_optima(k: int) -> None:
    """L-BFGS from a perturbed k-gon ends at the published l*, b* (to 7 digits), where the gradient is zero."""
    norm, bias, h = GONS[k]
    W, b = build_k_gon(k, k, 1.05 * norm, 0.9 * bias, [])
    computed = minimise(
        lambda parameters, which: uniform_loss(*parameters),
        (W[None], b[None]),
        max_iterations=500,
        gradient_tolerance=1e-11,
        history=10,
    )
    assert computed.converged.all()
    assert computed.loss.item() == pytest.approx(h / (3 * k), abs=1e-7)
    assert computed.parameters[0][0].norm(dim=0).tolist() == pytest.approx([norm] * k, abs=1e-7)
    assert computed.parameters[1][0].tolist() == pytest.approx([bias] * k, abs=1e-7)


@pytest.mark.parametrize("signed", [False, True])
def test_loss_equals_the_enumerated_loss(signed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    W, b = (torch.randn(*shape, generator=generator, dtype=F64) for shape in ((6, 3, 5), (6, 5)))
    importance, q = (
        torch.rand(6, 5, generator=generator, dtype=F64),
        torch.rand(5, generator=generator, dtype=F64).softmax(0),
    )
    computed = one_active_tied_loss(W, b, importance=importance, probabilities=q, signed=signed)
    truth = tied_loss(W, b, importance=importance, activity=enumerate_one_active(q), signed=signed)
    torch.testing.assert_close(computed, truth, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bias", [-0.2, 0.3])
def test_gradcheck_with_dead_features(signed: bool, bias: float) -> None:
    W = torch.tensor([[1.0, -1, 0, 0], [0, 0, 0, 0.8]], dtype=F64, requires_grad=True)
    b = torch.full((4,), bias, dtype=F64, requires_grad=True)
    q = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64)

    def loss(W: Tensor, b: Tensor) -> Tensor:
        return one_active_relu_loss(W.T @ W, b, importance=torch.ones(4, dtype=F64), probabilities=q, signed=signed)

    assert torch.autograd.gradcheck(loss, (W, b))


def test_loss_of_many_features_is_finite() -> None:
    """400 → 30: loss and gradient are finite; with all features dead and b = 0 the loss is 1/3."""
    W = torch.zeros(30, 400, dtype=F64, requires_grad=True)
    loss = uniform_loss(W, torch.zeros(400, dtype=F64))
    (slope,) = torch.autograd.grad(loss, W)
    assert loss.item() == pytest.approx(1 / 3)
    assert slope.isfinite().all()
    W = (0.3 * torch.randn(30, 400, generator=torch.Generator().manual_seed(1), dtype=F64)).requires_grad_()
    (slope,) = torch.autograd.grad(uniform_loss(W, torch.full((400,), -0.1, dtype=F64)), W)
    assert slope.isfinite().all()
