"""Spectra from Hessian products, compared with the full Hessian."""

import pytest
import torch
from torch import Tensor

from crux.llc.hessian import (
    LANCZOS_STEPS,
    MAX_DENSE,
    estimate_spectrum,
    full_spectrum,
    lanczos_spectrum,
    largest_eigenvalue,
    make_hessian_product,
    random_signs,
)
from crux.llc.step_size import default_step_size
from tests.support.quadratic_losses import values


def random_symmetric_matrices(n: int, *, rows: int) -> Tensor:
    """Return random symmetric matrices with some negative eigenvalues."""
    A = torch.randn(rows, n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return A @ A.mT / n - 0.3 * torch.eye(n, dtype=torch.float64)


def test_full_spectrum_reproduces_the_hessian() -> None:
    w = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(w: Tensor) -> Tensor:
        return (w[:, 0] ** 4 + w[:, 1] * w[:, 2].sin() + w[:, 3].exp() * w[:, 0]).sum()

    def gradient(w: Tensor) -> Tensor:
        return torch.autograd.grad(loss(w), w, create_graph=True)[0]

    spectrum = full_spectrum(make_hessian_product(gradient, w), w)
    assert spectrum.vectors is not None
    for row in range(2):
        H = torch.autograd.functional.hessian(lambda x: loss(x[None]), w[row])
        assert isinstance(H, Tensor)
        V, a = spectrum.vectors[row], spectrum.values[row]
        torch.testing.assert_close(V @ torch.diag(a) @ V.T, H)


def test_lanczos_gives_largest_eigenvalue_and_traces() -> None:
    H = random_symmetric_matrices(60, rows=64)
    H = H[:1].expand(64, -1, -1)  # one matrix, from 64 random starts
    like = torch.zeros(64, 60, dtype=torch.float64)
    spectrum = lanczos_spectrum(lambda v: (H @ v[:, :, None]).squeeze(2), random_signs(like, 0), steps=LANCZOS_STEPS)
    exact = torch.linalg.eigvalsh(H[0])
    torch.testing.assert_close(spectrum.largest, exact[-1].expand(64), rtol=1e-6, atol=0)
    torch.testing.assert_close(spectrum.weights.sum(1), torch.full((64,), 60.0, dtype=torch.float64))
    # the trace, and a sum of a_i / (a_i + 0.1) like that of a predicted estimate
    for f in (lambda a: a, lambda a: a.clamp(min=0) / (a.clamp(min=0) + 0.1)):
        assert float((spectrum.weights * f(spectrum.values)).sum(1).mean()) == pytest.approx(
            float(f(exact).sum()), rel=0.06
        )


def test_many_coordinates_use_a_quadrature_over_the_rows_of_a_case() -> None:
    n = MAX_DENSE + 1
    a = torch.linspace(0, 2, n, dtype=torch.float64)
    like = torch.zeros(8, n, dtype=torch.float64)  # two cases of four rows
    spectrum = estimate_spectrum(lambda v: a * v, like, rows_per_case=4, seed=0)
    assert spectrum.vectors is None
    assert spectrum.values.shape[0] == 2
    assert spectrum.largest.tolist() == pytest.approx([2, 2], rel=1e-3)
    assert (spectrum.weights * spectrum.values).sum(1).tolist() == pytest.approx([n, n], rel=1e-6)


def test_largest_eigenvalue_is_the_most_positive() -> None:
    a = values(-5.0, 1.0, 0.5)
    spectrum = largest_eigenvalue(lambda v: a * v, torch.zeros(3, 3, dtype=torch.float64), seed=0)
    assert spectrum.tolist() == pytest.approx([1, 1, 1])


def test_default_step_size() -> None:
    eps = default_step_size(
        values(2.0, -1.0), nbeta=values(100.0, 10.0), gamma=values(1.0, 4.0), max_scale=10.0, corrected=False
    )
    # 0.1 / (max_scale (nβ a + γ)), where the negative curvature counts as 0
    assert eps.tolist() == pytest.approx([0.01 / 201, 0.01 / 4])
