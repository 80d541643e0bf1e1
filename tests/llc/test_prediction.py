"""The predicted estimate: the table of docs/reference/learning_coefficients.md §3, and flat directions."""

import pytest
import torch

from crux.llc.prediction import predict_llc
from tests.support.quadratic_losses import EIGENVALUES, values


def predict(*, step_size: float, gamma: float, noise: float) -> float:
    a = values(*EIGENVALUES)[None]  # one case with five directions
    prediction = predict_llc(
        a,
        weights=torch.ones_like(a),
        nbeta=values(1000.0),
        gamma=values(gamma),
        step_size=values(step_size),
        noise=torch.full_like(a, noise),
    )
    return float(prediction)


@pytest.mark.parametrize(
    ("step_size", "gamma", "noise", "expected"),
    [
        (1e-4, 0, 0, 2.533),
        (1e-3, 0, 0, 2.920),
        (2e-3, 0, 0, 3.698),
        (1e-4, 10, 0, 2.302),
        (1e-4, 100, 0, 1.693),
        (1e-4, 0, 1 / 32, 4.513),
        (1e-3, 0, 1 / 32, 25.73),
        (0, 0, 0, 2.5),
        (4e-3, 0, 0, float("inf")),
    ],
)
def test_values_of_the_reference(step_size: float, gamma: float, noise: float, expected: float) -> None:
    assert predict(step_size=step_size, gamma=gamma, noise=noise) == pytest.approx(expected, abs=6e-3)


def test_flat_and_negative_directions_contribute_nothing() -> None:
    a = values(1.0, 0.0, -1e-9)[None]
    ones, zeros = torch.ones_like(a), torch.zeros_like(a)
    for gamma in (0.0, 1.0):
        prediction = predict_llc(
            a, weights=ones, nbeta=values(10.0), gamma=values(gamma), step_size=values(0.0), noise=zeros
        )
        assert float(prediction) == pytest.approx(0.5 * 10 / (10 + gamma))
