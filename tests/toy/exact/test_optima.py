"""Exact optima of five features in two dimensions (docs/reference/toy_models.md §4.5), and the crossing if the fifth feature is sparser."""

import pytest
import torch
from torch import Tensor

from crux.toy.exact.activity import enumerate_independent
from crux.toy.exact.loss import tied_loss
from crux.toy.exact.optima import Optima, build_start, distinct_arrangements, exact_optima

F64 = torch.float64
POLISH = {"signed": False, "seed": 0, "max_iterations": 400, "gradient_tolerance": 1e-9}


def find_optima(density: Tensor, *, n_hidden: int = 2, importance: Tensor | None = None, n_random: int = 4) -> Optima:
    importance = torch.ones(len(density), dtype=F64) if importance is None else importance
    return exact_optima(n_hidden=n_hidden, importance=importance, density=density, n_random=n_random, **POLISH)


def dimensionality(W: Tensor) -> Tensor:
    gram = W.T @ W
    return gram.diagonal().square() / gram.square().sum(1).clamp(min=1e-12)


TABLE = {  # p: geometry, loss, norm, bias
    0.5: ("digons", 0.25675, 0.969, 0.098),
    0.3: ("digons", 0.13612, 1.010, 0.018),
    0.2: ("pentagon", 0.07959, 1.034, -0.133),
    0.1: ("pentagon", 0.02631, 1.099, -0.208),
    0.05: ("pentagon", 0.008904, 1.133, -0.244),
    0.02: ("pentagon", 0.002410, 1.157, -0.269),
    0.01: ("pentagon", 0.001001, 1.163, -0.275),
}
# p: loss of the geometry that is second
RUNNER_UP = {0.5: 0.2819, 0.3: 0.14763, 0.2: 0.08304, 0.1: 0.03747, 0.05: 0.01771, 0.02: 0.00683, 0.01: 0.003375}


@pytest.mark.slow
@pytest.mark.parametrize("density", TABLE)
def test_optima_equal_the_published_table(density: float) -> None:
    geometry, loss, norm, bias = TABLE[density]
    computed = find_optima(torch.full((5,), density, dtype=F64))
    best, b = computed.W[0], computed.b[0]
    assert computed.loss[0].item() == pytest.approx(loss, rel=1e-3)
    assert computed.gradient[0] <= 1e-8
    assert (computed.loss[1:] / RUNNER_UP[density] - 1).abs().min() < 1e-3
    assert (computed.loss.diff() > 0).all()
    D, norms = dimensionality(best), best.norm(dim=0)
    if geometry == "pentagon":
        assert D.tolist() == pytest.approx([0.4] * 5, abs=1e-6)
        # the table's minimum was found with quadrature of error 1e-5, its place therefore within about 3e-3
        assert norms.tolist() == pytest.approx([norm] * 5, abs=3e-3)
        assert b.tolist() == pytest.approx([bias] * 5, abs=3e-3)
        angle = 2 * torch.pi * torch.arange(5, dtype=F64) / 5
        published = norm * torch.stack([angle.cos(), angle.sin()]), torch.full((5,), bias, dtype=F64)
    else:
        dead = norms.argmin()
        alive = norms.argsort()[1:]
        assert norms[dead] < 1e-6
        assert b[dead].item() == pytest.approx(density / 2, abs=1e-6)
        assert norms[alive].tolist() == pytest.approx([norm] * 4, abs=2e-3)
        assert b[alive].tolist() == pytest.approx([bias] * 4, abs=2e-3)
        assert D[alive].tolist() == pytest.approx([0.5] * 4, abs=1e-6)
        W = norm * torch.tensor([[1.0, -1, 0, 0, 0], [0, 0, 1, -1, 0]], dtype=F64)
        published = W, torch.tensor([bias] * 4 + [density / 2], dtype=F64)
    activity = enumerate_independent(torch.full((5,), density, dtype=F64))
    theirs = tied_loss(*published, importance=torch.ones(5, dtype=F64), activity=activity, signed=False)
    assert computed.loss[0] < theirs  # the optimum that we find is better than the published one


@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "pentagon", "digons"), [(4.0, 0.00596, 0.00583), (3.0, 0.00651, 0.00722)])
def test_pentagon_and_digons_have_published_losses_if_the_fifth_feature_is_sparser(
    ratio: float, pentagon: float, digons: float
) -> None:
    """p = .05 and a fifth feature sparser by the ratio: pentagon (all five alive) and two digons cross at about 3.7.

    The published digon losses are those of a fifth feature dead with b ≤ 0; its best bias b = p/2 takes p²/4 off.
    """
    density = torch.tensor([0.05] * 4 + [0.05 / ratio], dtype=F64)
    computed = find_optima(density)
    norms = computed.W.norm(dim=1)
    all_alive, fifth_dead = (norms > 0.5).all(1), (norms[:, 4] < 1e-4) & (norms[:, :4] > 0.5).all(1)
    assert computed.loss[all_alive][0].item() == pytest.approx(pentagon, abs=6e-6)
    assert (computed.loss[all_alive][0] < computed.loss[fifth_dead][0]).item() == (ratio == 3)
    assert computed.loss[fifth_dead][0].item() == pytest.approx(digons - (0.05 / ratio) ** 2 / 4, abs=6e-6)


def test_two_features_in_one_dimension() -> None:
    """For sparse features the optimum is the digon, with W₁ = −W₂. Every optimum is stationary, and the best comes first."""
    computed = find_optima(torch.full((2,), 0.1, dtype=F64), n_hidden=1)
    assert computed.W[0, 0, 0].item() == pytest.approx(-computed.W[0, 0, 1].item(), abs=1e-6)
    assert (computed.gradient <= 1e-6).all()
    assert (computed.loss.diff() > 0).all()
    assert len(computed.loss) == len(computed.starts)


def test_enough_dimensions_lose_nothing() -> None:
    computed = find_optima(torch.full((2,), 0.4, dtype=F64), n_hidden=2, n_random=0)
    assert computed.loss[0].item() == pytest.approx(0, abs=1e-15)


def test_most_important_features_are_represented() -> None:
    """With dense features of importance 3, 2, 1, the first two get a dimension each."""
    computed = find_optima(
        torch.full((3,), 1.0, dtype=F64), importance=torch.tensor([1.0, 3.0, 2.0], dtype=F64), n_random=2
    )
    assert computed.loss[0].item() == pytest.approx(1 / 12)  # the variance of U[0, 1]
    assert computed.W[0].norm(dim=0).tolist() == pytest.approx([0, 1, 1], abs=1e-5)


def test_arrangements_are_distinct_up_to_swaps() -> None:
    """Four interchangeable features in two dimensions: 1 and 2 use one dimension; 1+1, 1+2, 2+2, 3-gon and 4-gon use two."""
    alike = distinct_arrangements([0, 0, 0, 0], 2)
    assert sorted(sorted(map(len, parts)) for parts in alike) == [[1], [1, 1], [1, 2], [2], [2, 2], [3], [4]]
    assert (
        len(distinct_arrangements([0, 1, 2, 3], 2)) == 4 + 6 + 6 + 12 + 3 + 4 + 1
    )  # all different: every choice of features


def test_start_places_digon_and_dead_features() -> None:
    mean = torch.full((5,), 0.05, dtype=F64)
    W, b = build_start(((0,), (1, 3)), n_hidden=2, mean=mean)
    assert W.tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, -1, 0]]
    assert b.tolist() == [0, 0, 0.05, 0, 0.05]
    W, _ = build_start(((0, 1, 2, 3, 4),), n_hidden=2, mean=mean)
    assert dimensionality(W).tolist() == pytest.approx([0.4] * 5)
