"""The behavioural loss: its Hessian, known effective parameters, and the rank of its spectrum."""

import numpy as np
import pytest
import torch
from torch import Tensor

from crux.llc.behavioural import behavioural_loss, gauss_newton_product, output_distance
from crux.llc.chains import ChainSettings
from crux.llc.coordinates import Coordinates
from crux.llc.effective import effective_parameters, gauss_newton_spectrum, quadratic_n_eff, spectrum_rank
from crux.llc.estimate import NotAMinimumWarning, estimate_llc
from crux.llc.losses import Batch, FixedData, Minibatches, compute_loss, map_over_chains
from crux.llc.options import Divergence
from crux.llc.samplers.hmc import HMC
from crux.llc.samplers.sgld import SGLD
from tests.support.quadratic_losses import values

WIDTHS = (3, 4, 3)
"""Inputs, hidden neurons and outputs of the perceptron."""


def perceptron(p: dict[str, Tensor], x: Batch) -> Tensor:
    """Return the outputs of one network."""
    hidden = (x @ p["A"].mT + p["a"]).relu()
    return hidden @ p["B"].mT + p["b"]


def make_network(n_cases: int, *, samples: int = 40) -> tuple[dict[str, Tensor], Tensor]:
    """Return random parameters of perceptrons, one row per case, and inputs."""
    rng = torch.Generator().manual_seed(1)
    n_in, n_hidden, n_out = WIDTHS
    shapes = {"A": (n_hidden, n_in), "a": (n_hidden,), "B": (n_out, n_hidden), "b": (n_out,)}
    params = {k: torch.randn(n_cases, *shape, generator=rng, dtype=torch.float64) for k, shape in shapes.items()}
    return params, torch.randn(samples, n_in, generator=rng, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # raised by torch's forward mode
@pytest.mark.parametrize("divergence", Divergence)
def test_hessian_is_the_gauss_newton_matrix(divergence: Divergence) -> None:
    """It equals torch.func's Hessian and Jᵀ B J by hand, for two networks at once."""
    params, x = make_network(2)
    coordinates = Coordinates(params, free=None)
    w = coordinates.start(1)
    loss = behavioural_loss(map_over_chains(perceptron), params, divergence)
    batch = FixedData(x).get_batch(0, [])
    product = gauss_newton_product(map_over_chains(perceptron), coordinates, w, batch, divergence)
    columns = torch.stack([product(torch.eye(coordinates.n).double()[i].expand_as(w)) for i in range(coordinates.n)], 2)
    for case in range(2):

        def loss_of_case(flat: Tensor, case: int = case) -> Tensor:
            both = w.clone()
            return compute_loss(loss, coordinates, torch.cat([both[:case], flat[None], both[case + 1 :]]), batch)[case]

        exact = torch.func.hessian(loss_of_case)(w[case])
        torch.testing.assert_close(columns[case], exact, atol=1e-8, rtol=0)
        assert float(exact.abs().max()) > 0.1
        one_case = {name: v[case] for name, v in params.items()}

        def outputs_of_case(flat: Tensor, case: int = case) -> Tensor:
            return perceptron({k: v[0] for k, v in coordinates.to_parameters(flat[None].expand_as(w)).items()}, x)

        J, out = torch.func.jacrev(outputs_of_case)(w[case]), perceptron(one_case, x)
        p = out.softmax(-1)
        B = 2 * torch.eye(3).double().expand(40, 3, 3)
        if divergence is Divergence.kl:
            B = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        by_hand = torch.einsum("soi,sop,spj->ij", J, B, J) / 40
        torch.testing.assert_close(exact, by_hand, atol=1e-8, rtol=0)


def test_distances_by_hand() -> None:
    now, before = values(0.0, 1.0, 3.0), values(0.0, 0.0, 1.0)
    assert float(output_distance(now, before, Divergence.mse)) == 5
    p, q = before.softmax(-1), now.softmax(-1)
    assert float(output_distance(now, before, Divergence.kl)) == pytest.approx(float((p * (p / q).log()).sum()))
    assert float(output_distance(before, before, Divergence.kl)) == 0
    # the KL ignores a constant added to all logits
    assert float(output_distance(now + 7, before, Divergence.kl)) == pytest.approx(
        float(output_distance(now, before, Divergence.kl))
    )


@pytest.mark.slow
def test_any_parameters_are_a_minimum_even_on_minibatches() -> None:
    params, x = make_network(3)
    loss = behavioural_loss(map_over_chains(perceptron), params, Divergence.mse)
    given = {
        "evaluation_data": FixedData(x), "nbeta": values(100, 100, 100), "gamma": values(10, 10, 10),
        "chains": ChainSettings(SGLD(), 3, burn_in=20, draws=10, every=1, step_size=None), "seeds": [0, 1, 2],
    }  # fmt: skip
    for data in (FixedData(x), Minibatches(x, size=5)):
        llc = estimate_llc(loss, params, gradient_data=data, **given)
        assert llc.loss_at_start.tolist() == [0, 0, 0]
        assert llc.gradient_norm.tolist() == [0, 0, 0]
        assert bool((llc.trace > 0).all())
    y = torch.ones(40, 3).double()
    with pytest.warns(NotAMinimumWarning, match="use a behavioural loss"):
        estimate_llc(
            map_over_chains(lambda p, b: (perceptron(p, b) - y).square().sum(-1)),
            params,
            gradient_data=FixedData(x),
            **given,
        )


A, C = 1e-3, 1.0
"""a and c of the loss a w² + c w⁴."""


def quartic_outputs(p: dict[str, Tensor], batch: Batch) -> Tensor:
    """Return outputs √a w and √c w², whose behavioural loss around 0 is a w² + c w⁴."""
    w = p["w"]
    return torch.stack([A**0.5 * w, C**0.5 * w.square()], -1).expand(-1, 1, -1)


def n_eff_by_quadrature(epsilon: float) -> float:
    """Return 2 E[L] / ε under exp(−L/ε) with a flat prior."""
    # beyond the edge, L / ε is more than 60
    edge = min((60 * epsilon / A) ** 0.5, (60 * epsilon / C) ** 0.25)
    w = np.linspace(-edge, edge, 200_001)
    L = A * w**2 + C * w**4
    mass = np.exp(-L / epsilon)
    return float(2 * (mass * L).sum() / mass.sum() / epsilon)


def test_known_curve_agrees_with_quadrature_and_sampler() -> None:
    """For L = a w² + c w⁴, N_eff is 1 for ε ≪ a²/c and 1/2 for ε ≫ a²/c, whereas the spectrum gives 1 everywhere.

    (docs/reference/learning_coefficients.md §5)
    """
    epsilon = [1e-9, 1e-6, 1e-3]
    exact = [n_eff_by_quadrature(e) for e in epsilon]
    assert exact == pytest.approx([1.00, 0.73, 0.51], abs=6e-3)  # below, at and above a²/c = 1e-6
    nbeta = values(*[1 / e for e in epsilon])
    step_size = values(*[0.5 * e / (2 * A + 12 * (C * e) ** 0.5) for e in epsilon])
    effective = effective_parameters(
        quartic_outputs, {"w": torch.zeros(1, 1, dtype=torch.float64)}, data=FixedData(torch.zeros(1)), divergence=Divergence.mse,
        nbeta=nbeta, gamma=1e-9, chains=ChainSettings(HMC(leapfrogs=3), 32, 50, 300, 1, step_size), seed=0,
    )  # fmt: skip
    assert effective.quadratic.tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    assert effective.epsilon.tolist() == pytest.approx(epsilon)
    for sampled, error, truth in zip(effective.n_eff.tolist(), effective.standard_error.tolist(), exact, strict=True):
        assert abs(sampled - truth) < 3 * error < 0.06


def test_rank_excludes_free_directions() -> None:
    """A ReLU perceptron has one free direction per hidden neuron (its scale), and more for the KL or with dead neurons."""
    params, x = make_network(1, samples=400)
    n = sum(v[0].numel() for v in params.values())

    def count(params: dict[str, Tensor], divergence: Divergence = Divergence.mse) -> float:
        spectrum = gauss_newton_spectrum(map_over_chains(perceptron), params, FixedData(x), divergence)
        assert spectrum.vectors is not None
        return float(spectrum_rank(spectrum, relative=1e-10))

    dead = {**params, "a": torch.cat([values(-50.0), params["a"][0, 1:]])[None]}
    assert count(params) == n - WIDTHS[1]
    assert (
        count(params, Divergence.kl) == n - WIDTHS[1] - 1 - WIDTHS[1]
    )  # the KL ignores a constant added to all logits
    assert count(dead) == n - (WIDTHS[1] - 1) - (WIDTHS[0] + 1 + WIDTHS[2])  # all parameters of a dead neuron are free


def test_quadratic_curve_from_full_spectrum_and_from_quadrature(monkeypatch: pytest.MonkeyPatch) -> None:
    params, x = make_network(1)
    given = (map_over_chains(perceptron), params, FixedData(x), Divergence.mse)
    whole = gauss_newton_spectrum(*given)
    nbeta = values(1e-2, 1, 1e2, 1e4)
    a = whole.values[0].clamp(min=0)
    by_hand = [float((a / (a + 2 / nb)).sum()) for nb in nbeta.tolist()]
    exact = quadratic_n_eff(whole, nbeta=nbeta, gamma=values(2.0))
    assert exact[0].tolist() == pytest.approx(by_hand)
    assert exact[0].tolist() == sorted(exact[0].tolist())
    monkeypatch.setattr("crux.llc.hessian.MAX_DENSE", 0)
    quadrature = gauss_newton_spectrum(*given)
    assert quadrature.vectors is None
    torch.testing.assert_close(quadratic_n_eff(quadrature, nbeta=nbeta, gamma=values(2.0)), exact, rtol=0.25, atol=0.0)
