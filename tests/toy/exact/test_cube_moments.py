"""Moments over the cube compared with corner sums in 80 digits, which in turn are compared with adaptive quadrature."""

from itertools import product
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import nquad
from torch import Tensor

from crux.toy.exact.cube_moments import relu_moments


def sum_corners(a: list, b: Any) -> tuple[Any, Any, Any]:
    """Return the three moments as signed sums over all corners, in 80 digits, where cancellation does no harm; no a may be zero.

    With f(c) = c₊^(k+r)/(k+r)!·r! the mean of u₊^r is Σ_S (−1)^(k−|S|) f(b + Σ_S a) / Π a. For t_k u₊, the last variable's
    ∫ t g(c + a t) dt = G(c + a)/a − (H(c + a) − H(c))/a², where G and H are the first and second antiderivatives of g.
    """
    k = len(a)
    with mpmath.workdps(80):
        exact = [mpmath.mpf(v) for v in a]
        scale = mpmath.fprod(exact)

        def f(c: Any, power: int) -> Any:
            return max(c, mpmath.mpf(0)) ** power / mpmath.factorial(power)

        mean = square = own = mpmath.mpf(0)
        for corner in product((0, 1), repeat=k):
            sign = (-1) ** (k - sum(corner))
            c = mpmath.mpf(b) + mpmath.fsum(v for v, on in zip(exact, corner, strict=True) if on)
            mean += sign * f(c, k + 1) / scale
            square += sign * 2 * f(c, k + 2) / scale
            own += sign * (corner[-1] * f(c, k + 1) / scale - f(c, k + 2) / scale / exact[-1])
        return mean, square, own


def draw_rows(k: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return rows that mix large and small coefficients, with offsets at which the sign changes inside the cube.

    Half of the rows have coefficients of every size from 1 to 1e-9; the others have small coefficients of one size, often near the
    size at which the method of integration changes.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    scale = 10 ** (-9 * draw(n, k).pow(3))
    scale[::2] = torch.where(draw(n, k) < 0.4, 1, 10 ** (-4 * draw(n, 1)))[::2]
    a = scale * torch.randn(n, k, generator=generator, dtype=torch.float64)
    low, high = a.clamp(max=0).sum(1), a.clamp(min=0).sum(1)
    return a, -(low + draw(n) * (high - low))


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6, 7, 8])
def test_moments_agree_with_80_digit_sums(k: int) -> None:
    a, b = draw_rows(k, 400 if k < 7 else 60, seed=k)
    moments = torch.stack(list(relu_moments(a, b)), 1)
    truth = [[float(m) for m in sum_corners(a[i].tolist(), b[i].item())] for i in range(len(a))]
    scale = a.abs().sum(1, keepdim=True)
    error = ((moments - torch.tensor(truth, dtype=torch.float64)) / torch.cat([scale, scale**2, scale], 1)).abs()
    assert error.max() < 1e-11


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_gradients_agree_with_80_digit_sums(k: int) -> None:
    a, b = draw_rows(k, 60, seed=100 + k)
    a.requires_grad_()
    b.requires_grad_()
    gradients = [torch.autograd.grad(m.sum(), [a, b], retain_graph=True) for m in relu_moments(a, b)]
    h = mpmath.mpf(2) ** -90  # about 1e-27, so that the difference quotient is exact enough in 80 digits
    with mpmath.workdps(80):
        for i in range(len(a)):
            point = [*a[i].tolist(), b[i].item()]
            scale = a[i].abs().sum().item()
            for j in range(k + 1):
                up, down = ([v + (sign * h if c == j else 0) for c, v in enumerate(point)] for sign in (1, -1))
                ups, downs = sum_corners(up[:-1], up[-1]), sum_corners(down[:-1], down[-1])
                for which, (slope_a, slope_b) in enumerate(gradients):
                    truth = float((ups[which] - downs[which]) / (2 * h))
                    slope = slope_b[i].item() if j == k else slope_a[i, j].item()
                    assert slope == pytest.approx(truth, abs=1e-9 * (scale if which == 1 else 1))


@pytest.mark.parametrize("k", [1, 2])
def test_corner_sums_agree_with_adaptive_quadrature(k: int) -> None:
    a, b = draw_rows(k, 3, seed=200 + k)
    for row, start in zip(a.tolist(), b.tolist(), strict=True):

        def relu(*t: float, row: list[float] = row, start: float = start) -> float:
            return max(0.0, start + float(np.dot(row, t)))

        integrands = (relu, lambda *t: relu(*t) ** 2, lambda *t: t[-1] * relu(*t))
        truth = [nquad(f, [(0, 1)] * k, opts={"epsabs": 1e-8, "epsrel": 1e-8, "limit": 200})[0] for f in integrands]
        assert [float(m) for m in sum_corners(row, start)] == pytest.approx(truth, abs=1e-6)


def test_moments_equal_hand_computed_values() -> None:
    """For u = t − ½: E = ⅛, E² = 1/24, E[t u₊] = ∫_½¹ t(t − ½) = 5/48. For u = 1 + t₁ + t₂ > 0: E = 2, E² = 4 + 1/6, E[t₂u] = 13/12."""
    moments = relu_moments(torch.tensor([[1.0]]).double(), torch.tensor([-0.5]).double())
    assert [m.item() for m in moments] == pytest.approx([1 / 8, 1 / 24, 5 / 48], abs=1e-15)
    moments = relu_moments(torch.ones(1, 2).double(), torch.ones(1).double())
    assert [m.item() for m in moments] == pytest.approx([2, 4 + 1 / 6, 13 / 12], abs=1e-15)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("start", [-0.3, 0.0, 0.4])
def test_value_and_gradient_at_zero(k: int, start: float) -> None:
    """E = b₊, E² = b₊² and E[t u₊] = b₊/2 at a = 0, with their derivatives."""
    a = torch.zeros(1, k, dtype=torch.float64, requires_grad=True)
    b = torch.tensor([start], dtype=torch.float64, requires_grad=True)
    mean, square, own = relu_moments(a, b)
    on, height = float(start > 0), max(start, 0.0)
    assert [m.item() for m in (mean, square, own)] == pytest.approx([height, height**2, height / 2], abs=1e-15)
    if start == 0:  # only the square is differentiable there
        slope_a, slope_b = torch.autograd.grad(square.sum(), [a, b])
        assert slope_a.eq(0).all()
        assert slope_b.eq(0).all()
        return
    for moment, slope in ((mean, [0.5 * on] * k), (square, [height] * k), (own, [on / 4] * (k - 1) + [on / 3])):
        (slope_a,) = torch.autograd.grad(moment.sum(), [a], retain_graph=True)
        assert slope_a[0].tolist() == pytest.approx(slope, abs=1e-14)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("zeros", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_gradcheck_where_some_coefficients_are_zero(sign: int, zeros: tuple[int, ...]) -> None:
    a = sign * torch.tensor([[0.9, -0.4, 0.25]], dtype=torch.float64)
    a[0, list(zeros)] = 0
    b = torch.tensor([0.05], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: torch.stack(list(relu_moments(a, b))), (a.requires_grad_(), b.requires_grad_())
    )


def test_float32_results_are_accurate_to_single_precision() -> None:
    a, b = draw_rows(4, 200, seed=7)
    low, high = relu_moments(a.float(), b.float()), relu_moments(a, b)
    for x, y in zip(low, high, strict=True):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.double(), y, rtol=0, atol=2e-4)


def test_huge_and_tiny_rows_are_finite() -> None:
    a = torch.tensor([[1e-200, -1e-200, 3e-200], [1e-40, 0, 0], [1e8, -1e8, 1.0]], dtype=torch.float64).requires_grad_()
    moments = relu_moments(a, torch.zeros(3, dtype=torch.float64))
    (slope,) = torch.autograd.grad(torch.stack([m.sum() for m in moments]).sum(), [a])
    assert all(m.isfinite().all() for m in moments)
    assert slope.isfinite().all()
