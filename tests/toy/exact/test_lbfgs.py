"""Batched L-BFGS compared with scipy's, for single and many instances, and on ill-behaved functions."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from crux.toy.exact.activity import enumerate_independent
from crux.toy.exact.lbfgs import Minimum, minimise
from crux.toy.exact.loss import tied_loss

F64 = torch.float64


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def minimise_each(loss, *start: Tensor, max_iterations: int = 1000, tolerance: float = 1e-9) -> Minimum:
    return minimise(loss, start, max_iterations=max_iterations, gradient_tolerance=tolerance, history=10)


def test_quadratics_of_any_condition_and_scale_converge() -> None:
    """Instances differ in their spectrum, with conditions up to 1e6, and in their minimum."""
    centre, spectrum = draw(30, 6, seed=0), 10 ** (6 * torch.rand(30, 6, dtype=F64) - 3)

    def loss(parameters: tuple[Tensor, ...], which: Tensor) -> Tensor:
        return 0.5 * (spectrum[which] * (parameters[0] - centre[which]).square()).sum(1)

    minimum = minimise_each(loss, torch.zeros(30, 6, dtype=F64))
    assert minimum.converged.all()
    assert (spectrum * (minimum.parameters[0] - centre)).abs().max() <= 1e-9
    assert minimum.iterations.max() < 200


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[..., 1:] - x[..., :-1].square()).square() + (1 - x[..., :-1]).square()).sum(-1)


def test_rosenbrock_minima_agree_with_scipy() -> None:
    start = 0.5 * draw(20, 6, seed=1)
    minimum = minimise_each(lambda parameters, which: rosenbrock(parameters[0]), start)
    assert minimum.converged.all()
    for i in range(20):

        def value_and_slope(x: np.ndarray) -> tuple[float, np.ndarray]:
            at = torch.tensor(x, requires_grad=True)
            value = rosenbrock(at)
            value.backward()
            assert at.grad is not None
            return value.item(), at.grad.numpy()

        truth = minimize(
            value_and_slope, start[i].numpy(), jac=True, method="L-BFGS-B", options={"ftol": 0, "gtol": 1e-9}
        )
        assert minimum.loss[i].item() == pytest.approx(truth.fun, abs=1e-12)  # the same of its two minima
        assert minimum.parameters[0][i].tolist() == pytest.approx(truth.x.tolist(), abs=1e-6)
        assert minimum.iterations[i] < 2 * truth.nit


def build_toy_loss(density: Tensor, importance: Tensor):
    def loss(parameters: tuple[Tensor, ...], which: Tensor) -> Tensor:
        W, b = parameters
        return tied_loss(
            W, b, importance=importance[which], activity=enumerate_independent(density[which]), signed=False
        )

    return loss


def test_instances_do_not_influence_each_other() -> None:
    """Toy models of different densities, including one that starts at NaN, one that starts far away, and one with zero gradient."""
    n = 12
    density, importance = torch.linspace(0.05, 0.9, n, dtype=F64)[:, None].expand(n, 3), torch.ones(n, 3, dtype=F64)
    W, b = draw(n, 2, 3, seed=2), 0.1 * draw(n, 3, seed=3)
    W[3], W[5], W[7], b[7] = torch.nan, 1e3, 0, -1
    together = minimise_each(build_toy_loss(density, importance), W, b)
    assert not together.converged[3]
    assert together.iterations[3] == 0
    for i in (3, 5, 8):
        alone = minimise_each(build_toy_loss(density[i : i + 1], importance[i : i + 1]), W[i : i + 1], b[i : i + 1])
        assert alone.converged.item() == together.converged[i].item()
        if i != 3:
            assert together.converged[i]
            torch.testing.assert_close(alone.loss[0], together.loss[i], rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(alone.parameters[1][0], together.parameters[1][i], rtol=0, atol=1e-7)


def test_scipy_finds_no_lower_toy_model_loss() -> None:
    n = 4
    density, importance = torch.full((n, 4), 0.2, dtype=F64), 0.9 ** torch.arange(4, dtype=F64).expand(n, 4)
    W, b = draw(n, 2, 4, seed=4), torch.zeros(n, 4, dtype=F64)
    minimum = minimise_each(build_toy_loss(density, importance), W, b)
    assert minimum.converged.all()
    for i in range(n):

        def value_and_slope(x: np.ndarray) -> tuple[float, np.ndarray]:
            at = torch.tensor(x, requires_grad=True)
            value = build_toy_loss(density, importance)(
                (at[:8].view(1, 2, 4), at[8:].view(1, 4)), torch.zeros(1, dtype=torch.long)
            )
            value.sum().backward()
            assert at.grad is not None
            return value.item(), at.grad.numpy()

        ends = torch.cat([p[i].flatten() for p in minimum.parameters]).numpy()
        again = minimize(value_and_slope, ends, jac=True, method="L-BFGS-B", options={"ftol": 0, "gtol": 1e-12})
        assert minimum.loss[i].item() == pytest.approx(again.fun, rel=1e-12)


def test_search_terminates_at_kinks() -> None:
    """|x| and sums of ReLUs have no zero gradient to converge to; the minimum is found nevertheless."""
    start = draw(10, 3, seed=5)
    weight = torch.tensor([1.0, 3.0, 0.5], dtype=F64)
    minimum = minimise_each(
        lambda parameters, which: (weight * (parameters[0] - 0.3).abs()).sum(1), start, max_iterations=60
    )
    assert minimum.loss.max() < 1e-6
    minimum = minimise_each(
        lambda parameters, which: parameters[0].relu().sum(1) + 0.5 * (-parameters[0]).relu().sum(1),
        start,
        max_iterations=60,
    )
    assert minimum.loss.max() < 1e-6


def test_search_can_start_at_a_kink_or_an_optimum() -> None:
    """ReLU models start at W = 0, b = 0, where all units are at the kink; x² starts at 0 and takes no step."""
    density, importance = torch.full((1, 3), 0.2, dtype=F64), torch.ones(1, 3, dtype=F64)
    minimum = minimise_each(
        build_toy_loss(density, importance), torch.zeros(1, 2, 3, dtype=F64), torch.zeros(1, 3, dtype=F64)
    )
    assert minimum.loss.isfinite().all()
    minimum = minimise_each(lambda parameters, which: parameters[0].square().sum(1), torch.zeros(2, 3, dtype=F64))
    assert minimum.converged.all()
    assert minimum.iterations.eq(0).all()


def test_search_terminates_if_the_loss_is_unbounded() -> None:
    minimum = minimise_each(
        lambda parameters, which: -parameters[0].exp().sum(1), torch.zeros(1, 1, dtype=F64), max_iterations=50
    )
    assert not minimum.converged.any()
    assert minimum.loss.item() < -1


def test_search_steps_back_from_infinite_losses() -> None:
    """−log x + x is infinite or NaN at x ≤ 0; its minimum is 1 at x = 1."""
    start = torch.tensor([[1e-3], [50.0]], dtype=F64)
    minimum = minimise_each(lambda parameters, which: (parameters[0] - parameters[0].log()).sum(1), start)
    assert minimum.converged.all()
    assert minimum.parameters[0].flatten().tolist() == pytest.approx([1, 1])


def test_the_iteration_limit_is_per_instance() -> None:
    centre = torch.tensor([[0.0], [5.0]], dtype=F64)
    minimum = minimise_each(
        lambda parameters, which: rosenbrock(torch.cat([parameters[0], centre[which]], 1)), centre, max_iterations=1
    )
    assert minimum.iterations.max() == 1
