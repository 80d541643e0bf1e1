"""Phase boundaries compared with published values, with the formulas, and with the best of many starts on both sides."""

import pytest
import torch

from crux.config.errors import UserError
from crux.toy.exact.optima import exact_optima
from crux.toy.exact.phase_theory import (
    Boundaries,
    classes_between_boundaries,
    dropped_loss,
    exact_boundaries,
    fixed_weight_boundaries,
    smooth_onset,
)

F64 = torch.float64


def test_exact_boundaries_equal_published_values() -> None:
    """Reference 1.4.3: r* = 0.536, 0.205, 0.0487; the upper boundary is the inverse, the features being alike."""
    lower, upper = exact_boundaries(torch.tensor([0.5, 0.3, 0.1], dtype=F64), n_hidden=1)
    assert lower.tolist() == pytest.approx([0.536, 0.205, 0.0487], rel=2e-3)
    assert (lower * upper).tolist() == pytest.approx([1] * 3)


def test_losses_are_equal_at_fixed_weight_boundaries() -> None:
    density = torch.tensor([0.05, 0.2, 0.5], dtype=F64)
    lower, upper = fixed_weight_boundaries(density, n_hidden=1)
    for r, other in ((lower, lower * dropped_loss(density)), (upper, dropped_loss(density))):
        torch.testing.assert_close((1 + r) * density.square() / 6, other)
    swap = fixed_weight_boundaries(torch.tensor([4 / 7, 0.9], dtype=F64), n_hidden=1)
    assert swap.lower.tolist() == swap.upper.tolist() == [1, 1]
    two = fixed_weight_boundaries(density, n_hidden=2)
    torch.testing.assert_close(two.lower, lower)
    assert two.upper.tolist() == [1] * 3


def test_classes() -> None:
    edges = Boundaries(torch.tensor([0.5, 1.0]).double(), torch.tensor([2.0, 1.0]).double())
    assert classes_between_boundaries(torch.tensor([0.4, 0.6, 1.9, 2.1]).double(), edges).tolist() == [
        [0, 1, 1, 2],
        [0, 0, 2, 2],
    ]


def test_other_dimensions_are_rejected() -> None:
    with pytest.raises(UserError, match="1 or 2"):
        fixed_weight_boundaries(torch.tensor([0.5], dtype=F64), n_hidden=3)


def measure_class(r: float, density: float, n_hidden: int) -> int:
    """Return the class of the best of all structured starts and 10 random ones, by norm and overlap of the extra feature."""
    n = n_hidden + 1
    best = exact_optima(
        n_hidden=n_hidden,
        importance=torch.tensor([1.0] * n_hidden + [r], dtype=F64),
        density=torch.full((n,), density, dtype=F64),
        signed=False,
        n_random=10,
        seed=1,
        max_iterations=300,
        gradient_tolerance=1e-8,
    ).W[0]
    extra, others = best[:, -1], best[:, :-1]
    if extra.norm() < 1e-3:
        return 0
    return 1 if (extra @ others).abs().max() > 1e-3 else 2


@pytest.mark.slow
@pytest.mark.parametrize(("n_hidden", "density"), [(1, 0.1), (1, 0.5), (1, 0.55), (1, 0.7), (2, 0.1), (2, 0.5)])
def test_class_is_correct_on_both_sides_of_exact_boundaries(n_hidden: int, density: float) -> None:
    """Three per cent inside and outside of each boundary, models trained from scratch have the theoretical class."""
    edges = exact_boundaries(torch.tensor([density], dtype=F64), n_hidden=n_hidden)
    r = torch.cat([edges.lower * 0.97, edges.lower * 1.03, edges.upper * 0.97, edges.upper * 1.03])
    theory = classes_between_boundaries(r, edges)[0].tolist()
    assert [measure_class(v, density, n_hidden) for v in r.tolist()] == theory == [0, 1, 1, 2]


def test_smooth_onset_equals_known_values() -> None:
    """At p = 1 no output is clipped and the features are interchangeable: r = 1. Others are from Newton's method on the exact loss."""
    onset = smooth_onset(torch.tensor([1.0, 0.7, 0.6, 0.55], dtype=F64))
    assert onset.tolist() == pytest.approx([1, 0.7726, 0.6654, 0.6085], abs=1e-3)
