"""The estimator: averages, data, rejected arguments and warnings, with a test for every known bug of other libraries."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from crux.config.errors import UserError
from crux.llc.coordinates import Coordinates, stack_parameters
from crux.llc.estimate import NotAMinimumWarning
from crux.llc.explain import explain_estimate
from crux.llc.losses import NO_DATA, FixedData, Minibatches, map_over_chains
from crux.llc.samplers.hmc import HMC, MALA
from crux.llc.samplers.rmsprop_sgld import RMSPropSGLD
from tests.support.quadratic_losses import EIGENVALUES, estimate, quadratic, values

LONG_CHAINS = {"n_chains": 32, "burn_in": 400, "draws": 800}


def test_burn_in_is_discarded() -> None:
    """devinterp 2 averages over all steps, including the first ones near w*, where nβ (L − L(w*)) is near 0."""
    given = {"n_chains": 3, "every": 1, "draws": 30}
    whole = estimate(burn_in=1, **given | {"draws": 60})
    later = estimate(burn_in=31, **given)
    torch.testing.assert_close(later.trace, whole.trace[:, :, 30:])
    torch.testing.assert_close(later.mean, whole.trace[:, :, 30:].mean((1, 2)))
    assert float(whole.trace[:, :, 0].max()) < float(later.mean)  # still near w*
    thinned = estimate(burn_in=1, **given | {"draws": 30, "every": 2})
    torch.testing.assert_close(thinned.trace, whole.trace[:, :, 1::2])


def test_step_size_bias_is_as_predicted() -> None:
    gamma = values(30.0, 30.0, 30.0)
    llc = estimate(nbeta=values(1e3, 1e3, 1e3), gamma=gamma, step_size=values(2e-4, 1e-3, 2e-3), **LONG_CHAINS)
    assert (llc.predicted > llc.unbiased).all()
    assert float(llc.predicted[2] / llc.unbiased[2]) > 1.5
    assert ((llc.mean - llc.predicted).abs() < 3 * llc.standard_error).all()


def make_regression(n: int) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """Return the least-squares solution of a linear regression with five coefficients, and its data."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, generator=rng, dtype=torch.float64)
    y = x @ values(1, -1, 0.5, 0, 2) + torch.randn(n, generator=rng, dtype=torch.float64)
    best = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    return {"w": best[None]}, (x, y)


def half_square(p: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return half the squared error of one network, one value per sample."""
    x, y = batch
    return (x @ p["w"] - y).square() / 2


@pytest.mark.slow
def test_minibatch_noise_bias_is_as_predicted() -> None:
    """The bias ε (nβ)² s² / 4m is the usual cause of absurd estimates."""
    params, data = make_regression(400)
    given = {
        "params": params,
        "evaluation_data": FixedData(data),
        "gamma": values(1e-9),
        "nbeta": values(100.0),
        **LONG_CHAINS,
    }
    full = estimate(map_over_chains(half_square), gradient_data=FixedData(data), **given)
    small = estimate(map_over_chains(half_square), gradient_data=Minibatches(data, size=20), **given)
    assert float(full.unbiased) == pytest.approx(2.5)
    assert float((full.mean - full.predicted).abs() / full.standard_error) < 3
    assert float(small.predicted) > 1.1 * float(full.predicted)
    assert float(small.mean) == pytest.approx(float(small.predicted), rel=0.05)
    assert float(small.mean) > float(full.mean) + 3 * float(small.standard_error)
    assert any("minibatch noise inflate" in line for line in explain_estimate(small, 0))


def test_losses_are_paired_on_the_evaluation_data() -> None:
    """Another evaluation set shifts L(w*) and E[L] together, so that the estimate hardly changes."""
    params, data = make_regression(400)
    part = (data[0][:40], data[1][:40])
    given = {
        "params": params,
        "gradient_data": FixedData(data),
        "gamma": values(1e-9),
        "nbeta": values(100.0),
        **LONG_CHAINS,
    }
    whole = estimate(map_over_chains(half_square), evaluation_data=FixedData(data), **given)
    subset = estimate(map_over_chains(half_square), evaluation_data=FixedData(part), **given)
    best = {"w": params["w"][0]}
    assert float(whole.loss_at_start) == pytest.approx(float(half_square(best, data).mean()))
    assert float(subset.loss_at_start) == pytest.approx(float(half_square(best, part).mean()))
    gap = abs(float(whole.loss_at_start - subset.loss_at_start))
    assert 100 * gap > 3  # without pairing, this would be added to λ̂ = 2.5
    # E[L] on the subset: w has covariance (nβ XᵀX/n)⁻¹, with X of all data
    x = part[0]
    on_subset = 100 * float(torch.trace(torch.linalg.solve(data[0].T @ data[0] / 400, x.T @ x / 40))) / 2 / 100
    assert abs(float(subset.mean) / on_subset - 1) < 0.1


def test_minibatches_differ_between_chains() -> None:
    data = torch.arange(1000)
    drawn = Minibatches(data, size=50).get_batch(3, [(0, 0), (0, 1), (1, 0)])
    assert drawn.shape == (3, 50)
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[1], Minibatches(data, size=50).get_batch(3, [(0, 1)])[0])
    assert not torch.equal(drawn, Minibatches(data, size=50).get_batch(4, [(0, 0), (0, 1), (1, 0)]))


def test_restricted_estimate_equals_that_of_the_smaller_model() -> None:
    mask = torch.tensor([True, False, True, True, False])
    a = values(*EIGENVALUES)

    def smaller(p: dict[str, Tensor], batch: object) -> Tensor:
        return (a[mask] * p["w"].square()).sum(1) / 2

    restricted = estimate(free={"w": mask})
    smaller_estimate = estimate(smaller, params={"w": torch.zeros(1, 3, dtype=torch.float64)})
    torch.testing.assert_close(restricted.trace, smaller_estimate.trace)
    torch.testing.assert_close(restricted.predicted, smaller_estimate.predicted)
    frozen = Coordinates({"w": torch.ones(2, 5), "b": torch.ones(2, 1)}, free={"w": mask})
    parameters = frozen.to_parameters(torch.zeros(4, 4))
    assert parameters["w"].tolist() == [[0, 1, 0, 0, 1]] * 4
    assert parameters["b"].tolist() == [[0]] * 4
    with pytest.raises(UserError, match="there is no parameter v; there are w"):
        estimate(free={"v": mask})
    with pytest.raises(UserError, match="no parameter is free"):
        estimate(free={"w": torch.zeros(5, dtype=torch.bool)})
    with pytest.raises(UserError, match=r"w has shape \(5,\), its mask \(4,\)"):
        estimate(free={"w": mask[:4]})


def test_shared_storage_is_rejected() -> None:
    """devinterp's toy-model example samples one number as two, which doubles the learning coefficient."""
    w = torch.zeros(1, 5, dtype=torch.float64)
    with pytest.raises(UserError, match="v and w share their storage"):
        estimate(params={"w": w, "v": w})
    with pytest.raises(UserError, match="v and w share their storage"):
        estimate(params={"w": w, "v": w[:, 2:4]})

    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Linear(3, 2, bias=False)
            self.decode = nn.Linear(2, 3, bias=False)
            self.decode.weight.data = self.encode.weight.data.T

    with pytest.raises(UserError, match=r"decode\.weight and encode\.weight share"):
        stack_parameters([Aliased()])


def test_parameter_used_twice_is_sampled_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2, bias=False).double()
            self.b = self.a

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    model = Twice()
    nn.init.zeros_(model.a.weight)
    params = stack_parameters([model, model])
    assert {name: value.shape for name, value in params.items()} == {"a.weight": (2, 2, 2)}
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    llc = estimate(
        map_over_chains(lambda p, x: functional_call(model, p, (x,)).square().sum(1)),
        params=params,
        gradient_data=FixedData(x),
        evaluation_data=FixedData(x),
        nbeta=values(1e3, 1e5),
        gamma=values(1e-9, 1e-9),
        **LONG_CHAINS,
    )
    assert llc.unbiased.tolist() == pytest.approx([2, 2])
    assert ((llc.mean - llc.predicted).abs() < 3 * llc.standard_error).all()


def test_batched_and_mapped_losses_agree() -> None:
    params, data = make_regression(30)

    def native(p: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return ((x @ p["w"][:, :, None]).squeeze(2) - y).square() / 2

    for gradient_data in (FixedData(data), Minibatches(data, size=5)):
        given = {"params": params, "gradient_data": gradient_data, "evaluation_data": FixedData(data), "draws": 20}
        a, b = estimate(native, **given), estimate(map_over_chains(half_square), **given)
        torch.testing.assert_close(a.trace, b.trace)
        torch.testing.assert_close(a.predicted, b.predicted)


def test_scaling_the_loss_or_the_parameters() -> None:
    """λ is the same for L at nβ and for c L at nβ / c, and rescaled parameters have the same λ if γ is negligible."""
    once = estimate(draws=30)
    scaled = estimate(lambda p, batch: 7 * quadratic(p, batch), nbeta=values(1000.0 / 7), draws=30)
    torch.testing.assert_close(once.trace, scaled.trace)
    given = {"nbeta": values(1e6), "gamma": values(1e-6), **LONG_CHAINS}
    wide = estimate(lambda p, batch: (p["w"] * values(3, 1, 1, 1, 0.7)).square().sum(1), **given)
    assert float(wide.unbiased) == pytest.approx(2.5, rel=1e-6)
    assert float((wide.mean - wide.predicted).abs()) < 3 * float(wide.standard_error)


def test_diverging_step_size_is_rejected_before_sampling() -> None:
    calls = []

    def counting_loss(p: dict[str, Tensor], batch: object) -> Tensor:
        calls.append(1)
        return quadratic(p, batch)

    with pytest.raises(ValueError, match=r"diverges: at w\*, ε · \(nβ a_max \+ γ\) is 5.*default is 9.99e-05"):
        estimate(counting_loss, step_size=values(5e-3))
    assert len(calls) < 12  # those for the curvature at w*
    assert float(estimate(step_size=values(3.9e-3)).mean) > 0  # just below the limit, ε h = 4


def test_divergence_away_from_w_star_is_detected() -> None:
    """The loss is flat at w* in one direction but steep near it, so that the curvature at w* gives no valid step size."""

    def canyon(p: dict[str, Tensor], batch: object) -> Tensor:
        x, y = p["w"].unbind(1)
        return (x * (1 + 200 * y.square())).square() / 2

    given = {"params": {"w": torch.zeros(1, 2, dtype=torch.float64)}, "burn_in": 200}
    with pytest.raises(UserError, match=r"step_size: .* diverges|no longer finite"):
        estimate(canyon, step_size=values(1e-3), **given)
    corrected = estimate(canyon, step_size=values(1e-3), sampler=MALA, **given)
    assert bool(torch.isfinite(corrected.mean).all())


def test_non_finite_loss_is_reported_with_chain_and_step() -> None:
    def broken(p: dict[str, Tensor], batch: object) -> Tensor:
        far = p["w"].square().sum(1) > 0.02  # reached during burn-in, after which the loss is checked
        return torch.where(far, torch.nan, quadratic(p, batch))

    with pytest.raises(UserError, match=r"case 0, chain \d: the loss is no longer finite at step 50"):
        estimate(broken)


def test_warning_if_w_star_is_not_a_minimum() -> None:
    start = torch.full((1, 5), 0.1, dtype=torch.float64)
    with pytest.warns(NotAMinimumWarning, match=r"w\* is not a minimum, its gradient has norm 0.15"):
        llc = estimate(params={"w": start}, burn_in=2000)
    assert float(llc.gradient_norm) == pytest.approx(0.1 * float(values(*EIGENVALUES).square().sum().sqrt()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate()


def test_negative_estimate_is_explained() -> None:
    """If the chains find lower losses than L(w*), the estimate is negative and the explanation says why."""
    with pytest.warns(NotAMinimumWarning):
        llc = estimate(params={"w": torch.full((1, 5), 0.3, dtype=torch.float64)}, burn_in=3000, gamma=values(1e-3))
    assert float(llc.mean) < 0
    assert bool(llc.escaped)
    text = "\n".join(explain_estimate(llc, 0))
    assert "negative: on average the chains found a loss" in text
    assert "cannot be negative" in text
    without_problems = explain_estimate(
        estimate(lambda p, batch: p["w"].square().sum(1), step_size=values(5e-4), sampler=MALA, **LONG_CHAINS), 0
    )
    assert len(without_problems) == 1
    assert "a quadratic loss with this Hessian would give" in without_problems[0]


@pytest.mark.slow
def test_leaving_the_basin_is_detected_before_the_estimate_is_negative() -> None:
    """In a double well of unequal depths, only some draws have a loss below L(w*)."""

    def wells(p: dict[str, Tensor], batch: object) -> Tensor:
        x = p["w"][:, 0]
        return (x.square() - 1).square() - 0.2 * x

    x = min(np.roots([4, 0, -4, -0.2]))  # the shallow minimum
    given = {"params": {"w": torch.full((1, 1), x, dtype=torch.float64)}, "gamma": values(1e-6), "sampler": MALA}
    # the barrier is high at nβ = 300 and low at 2.5
    stays = estimate(wells, nbeta=values(300.0), **given, draws=2000)
    leaves = estimate(wells, nbeta=values(2.5), **given, draws=3000)
    assert not bool(stays.escaped)
    assert bool(leaves.escaped)
    assert float(leaves.below) > 0.05
    assert any("left the basin" in line or "negative" in line for line in explain_estimate(leaves, 0))


def test_standard_error_equals_the_scatter_of_estimates() -> None:
    """Estimates with different seeds scatter by about their standard error."""
    n = 24
    llc = estimate(nbeta=values(*[1e3] * n), gamma=values(*[30.0] * n), n_chains=4, burn_in=500, draws=800)
    scatter = float(llc.mean.std())
    assert 0.7 < scatter / float(llc.standard_error.mean()) < 1.5
    assert bool((llc.ess < 4 * 800).all())


def test_invalid_arguments_are_rejected() -> None:
    data = FixedData(None)
    for given, message in (
        ({"seeds": [0, 1]}, "seeds: 2 values for 1 cases"),
        ({"nbeta": values(0.0)}, "nbeta must be more than 0"),
        ({"draws": 3}, "draws=3: must be 4 or more"),
        ({"burn_in": 0}, "burn_in=0: must be 1 or more"),
        ({"step_size": values(-1.0)}, "step_size must be more than 0"),
        (
            {"gradient_data": Minibatches(torch.zeros(9), size=3), "evaluation_data": data, "sampler": MALA},
            "must be FixedData",
        ),
        ({"gradient_data": Minibatches(torch.zeros(9), size=3), "sampler": HMC(leapfrogs=2)}, "HMC\\(2\\) accepts"),
    ):
        with pytest.raises(UserError, match=message):
            estimate(**{"params": {"w": torch.zeros(1, 5, dtype=torch.float64)}} | given)
    with pytest.raises(UserError, match="no curvature at w\\* and gamma is 0"):
        estimate(lambda p, batch: p["w"].sum(1) * 0, gamma=values(0.0))


@pytest.mark.slow
def test_single_precision_and_rmsprop() -> None:
    llc = estimate(
        params={"w": torch.zeros(1, 5)}, sampler=RMSPropSGLD(decay=0.99, floor=0.1), gamma=values(30.0), **LONG_CHAINS
    )
    assert float((llc.mean - llc.predicted).abs()) < 3 * float(llc.standard_error)
    assert NO_DATA.get_batch(0, []) is None
