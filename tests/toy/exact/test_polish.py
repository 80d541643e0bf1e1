"""Polishing reaches the optimum of the basin, as scipy does row by row, and corrects the bias of dropped features."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from crux.toy.exact.polish import polish
from crux.toy.exact.population import population_loss
from crux.toy.features import FeatureDistribution
from crux.toy.options import Cooccurrence, Kind
from crux.toy.program import Program
from crux.toy.superposition import Weights


def build_program(density: torch.Tensor, importance: torch.Tensor) -> Program:
    distribution = FeatureDistribution(Cooccurrence.independent, 1, False)
    return Program("model", Kind.relu_output, 1, distribution, torch.arange(len(density)), density, importance, None)


def test_every_instance_reaches_the_optimum_of_its_basin() -> None:
    density, importance = torch.tensor([[0.1, 0.1], [0.4, 0.4]]), torch.rand(2, 3, 2) + 0.5
    many = build_program(density, importance)
    weights = Weights(torch.tensor([0.9, -0.7]).expand(2, 3, 1, 2), torch.zeros(2, 3, 2), None)
    polished = polish(many, weights, gradient_tolerance=1e-8, max_iterations=200)
    assert polished.converged.all()
    torch.testing.assert_close(polished.loss, population_loss(many, polished.weights))
    for stream in range(2):
        for setting in range(3):
            alone = build_program(density[[stream]], importance[stream, setting][None, None])

            def loss(x: np.ndarray, alone: Program = alone) -> float:
                at = torch.tensor(x)
                return population_loss(alone, Weights(at[:2].view(1, 1, 1, 2), at[2:].view(1, 1, 2), None)).item()

            truth = minimize(loss, np.array([0.9, -0.7, 0, 0]), method="BFGS", options={"gtol": 1e-7})
            assert polished.loss[stream, setting].item() == pytest.approx(truth.fun, rel=1e-5)


def test_negative_bias_of_a_dropped_feature_is_corrected() -> None:
    """With W_2 = 0 and b_2 < 0 the output is 0 without gradient; the optimal bias gives the loss Var(x) = p/3 − p²/4."""
    p = 0.4
    one = build_program(torch.full((1, 2), p), torch.ones(1, 1, 2))
    weights = Weights(torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), torch.tensor([0.0, -0.3]).view(1, 1, 2), None)
    assert population_loss(one, weights).item() == pytest.approx(p / 3)
    polished = polish(one, weights, gradient_tolerance=1e-8, max_iterations=200)
    assert polished.loss.item() == pytest.approx(p / 3 - p**2 / 4)
    assert polished.weights.b[0, 0].tolist() == pytest.approx([0, p / 2], abs=1e-6)
