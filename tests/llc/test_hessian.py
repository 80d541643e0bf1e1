"""Spectra by products against the Hessian itself."""

import pytest
import torch
from tests.support.quadratic_losses import values
from torch import Tensor

from crux.llc.hessian import (
    FULL,
    LANCZOS,
    full_spectrum,
    lanczos_spectrum,
    largest_eigenvalue,
    product_at,
    random_start,
    spectrum,
)
from crux.llc.step_size import default_step_size


def symmetric(n: int, *, rows: int) -> Tensor:
    """Random symmetric matrices with some negative eigenvalues."""
    A = torch.randn(rows, n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return A @ A.mT / n - 0.3 * torch.eye(n, dtype=torch.float64)


def test_products_are_the_hessians() -> None:
    w = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(w: Tensor) -> Tensor:
        return (w[:, 0] ** 4 + w[:, 1] * w[:, 2].sin() + w[:, 3].exp() * w[:, 0]).sum()

    def gradient(w: Tensor) -> Tensor:
        return torch.autograd.grad(loss(w), w, create_graph=True)[0]

    found = full_spectrum(product_at(gradient, w), w)
    assert found.vectors is not None
    for row in range(2):
        H = torch.autograd.functional.hessian(lambda x: loss(x[None]), w[row])
        assert isinstance(H, Tensor)
        V, a = found.vectors[row], found.values[row]
        torch.testing.assert_close(V @ torch.diag(a) @ V.T, H)


def test_lanczos_gives_the_largest_and_the_traces() -> None:
    H = symmetric(60, rows=64)
    H = H[:1].expand(64, -1, -1)
    like = torch.zeros(64, 60, dtype=torch.float64)
    found = lanczos_spectrum(lambda v: (H @ v[:, :, None]).squeeze(2), random_start(like, 0), steps=LANCZOS)
    exact = torch.linalg.eigvalsh(H[0])
    torch.testing.assert_close(found.largest, exact[-1].expand(64), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.weights.sum(1), torch.full((64,), 60.0, dtype=torch.float64))
    for f in (lambda a: a, lambda a: a.clamp(min=0) / (a.clamp(min=0) + 0.1)):
        assert float((found.weights * f(found.values)).sum(1).mean()) == pytest.approx(float(f(exact).sum()), rel=0.06)


def test_many_coordinates_take_the_quadrature_of_all_of_a_cases_rows() -> None:
    n = FULL + 1
    a = torch.linspace(0, 2, n, dtype=torch.float64)
    like = torch.zeros(8, n, dtype=torch.float64)
    found = spectrum(lambda v: a * v, like, rows_a_case=4, seed=0)
    assert found.vectors is None
    assert found.values.shape[0] == 2
    assert found.largest.tolist() == pytest.approx([2, 2], rel=1e-3)
    assert (found.weights * found.values).sum(1).tolist() == pytest.approx([n, n], rel=1e-6)


def test_the_largest_is_the_most_positive_one() -> None:
    a = values(-5.0, 1.0, 0.5)
    found = largest_eigenvalue(lambda v: a * v, torch.zeros(3, 3, dtype=torch.float64), seed=0)
    assert found.tolist() == pytest.approx([1, 1, 1])


def test_default_step_size() -> None:
    eps = default_step_size(
        values(2.0, -1.0), nbeta=values(100.0, 10.0), gamma=values(1.0, 4.0), stretch=10.0, corrected=False
    )
    assert eps.tolist() == pytest.approx([0.01 / 201, 0.01 / 4])
