"""Activity patterns and their probabilities: hand-computed values, marginals and sums."""

import pytest
import torch
from torch import Tensor

from crux.toy.exact.activity import (
    Activity,
    enumerate_anticorrelated,
    enumerate_correlated,
    enumerate_independent,
    enumerate_one_active,
)

F64 = torch.float64


def compute_marginals(activity: Activity) -> Tensor:
    return activity.weights @ activity.patterns.to(activity.weights)


def probability_together(activity: Activity, *features: int) -> float:
    return activity.weights[activity.patterns[:, list(features)].all(1)].sum().item()


def test_independent_by_hand() -> None:
    patterns, weights = enumerate_independent(torch.tensor([0.1, 0.5], dtype=F64))
    assert patterns.int().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    torch.testing.assert_close(weights, torch.tensor([0.45, 0.45, 0.05, 0.05], dtype=F64))


def test_independent_for_a_grid_of_densities() -> None:
    density = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
    activity = enumerate_independent(density)
    assert activity.weights.shape == (3, 4, 32)
    torch.testing.assert_close(activity.weights.sum(-1), torch.ones(3, 4, dtype=F64))
    torch.testing.assert_close(compute_marginals(activity), density)


def test_correlated_sets_are_active_as_one() -> None:
    activity = enumerate_correlated(torch.tensor([0.2, 0.3], dtype=F64), set_size=3)
    assert len(activity.patterns) == 4
    assert compute_marginals(activity).tolist() == pytest.approx([0.2] * 3 + [0.3] * 3)
    assert probability_together(activity, 0, 1, 2) == pytest.approx(0.2)
    assert probability_together(activity, 0, 3) == pytest.approx(0.06)


def test_anticorrelated_sets_have_one_member_at_most() -> None:
    activity = enumerate_anticorrelated(torch.tensor([0.2, 0.3], dtype=F64), set_size=2)
    assert len(activity.patterns) == 9
    assert activity.weights.sum().item() == pytest.approx(1)
    assert compute_marginals(activity).tolist() == pytest.approx(
        [0.1, 0.1, 0.15, 0.15]
    )  # the density of the set divided by its size
    assert probability_together(activity, 0, 1) == 0
    assert probability_together(activity, 1, 2) == pytest.approx(0.1 * 0.15)


def test_one_active() -> None:
    activity = enumerate_one_active(torch.tensor([[0.5, 0.25, 0.25], [1, 0, 0]], dtype=F64))
    assert activity.patterns.int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    torch.testing.assert_close(compute_marginals(activity), activity.weights)
