"""A modular network has a lower λ than an entangled one with as many parameters and the same loss at w*: the sum of its modules' λ.

All values are known: λ = codimension / 2 if the set of minima is a manifold, and quadrature otherwise. Estimates use Hamiltonian Monte
Carlo, which no step size biases.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from crux.llc.calibration import reflect_into_interval
from crux.llc.estimate import LLC
from crux.llc.hessian import full_spectrum, make_hessian_product
from crux.llc.known import deep_linear_llc, monomial_estimate
from crux.llc.losses import FixedData
from crux.llc.samplers.hmc import HMC
from tests.support.quadratic_losses import estimate, values

Params = dict[str, Tensor]
X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def assert_close(llc: LLC, expected: float) -> None:
    """Assert that the estimate is within three standard errors, which are small, of the expected value."""
    assert float(llc.standard_error) < 0.03 * max(expected, 1)
    assert abs(float(llc.mean) - expected) < 3 * float(llc.standard_error), (
        llc.mean,
        llc.standard_error,
        expected,
    )
    assert not bool(llc.escaped)


def assert_sum(parts: list[LLC], whole: LLC) -> None:
    """Assert that the estimate of the whole network is the sum of those of its modules."""
    error = float(torch.stack([p.standard_error.square() for p in (*parts, whole)]).sum().sqrt())
    assert abs(float(sum(p.mean for p in parts) - whole.mean)) < 3 * error


def assert_higher(entangled: LLC, modular: LLC) -> None:
    """Assert that the entangled network has a significantly higher estimate."""
    assert float(entangled.mean - modular.mean) > 5 * float(entangled.standard_error + modular.standard_error)


def sample_case(
    loss: Callable[[Params, Tensor], Tensor],
    w_star: Params,
    *,
    nbeta: float,
    gamma: float,
    largest: float,
    leapfrogs: int,
    seed: int,
) -> LLC:
    """Estimate one case with ε = 1 / (nβ · largest curvature)."""
    data = FixedData(X)
    return estimate(
        loss, params={name: w[None].clone() for name, w in w_star.items()}, gradient_data=data, evaluation_data=data,
        nbeta=values(nbeta), gamma=values(gamma), sampler=HMC(leapfrogs=leapfrogs), n_chains=32, burn_in=50, draws=120,
        seeds=[seed], step_size=values(1 / (nbeta * largest)),
    )  # fmt: skip


@pytest.mark.slow
def test_free_directions_that_interact_are_not_free() -> None:
    """Modules s² and t² have a free coordinate each, u and v, and λ = 1/2 + 1/2. A third output u² v² adds 0.39.

    With that output, u and v are still free separately, but not together.
    """

    def square(name: str) -> Callable[[Params, Tensor], Tensor]:
        return lambda p, batch: p[name].square().squeeze(1)

    def modular(p: Params, batch: Tensor) -> Tensor:
        return (p["s"].square() + p["t"].square()).squeeze(1)

    def entangled(p: Params, batch: Tensor) -> Tensor:
        return modular(p, batch) + (reflect_into_interval(p["u"]) * reflect_into_interval(p["v"])).square().squeeze(1)

    nbeta = 1e3
    zero = {name: torch.zeros(1, dtype=torch.float64) for name in "stuv"}
    given = {"nbeta": nbeta, "gamma": 0.0, "largest": 2.0, "leapfrogs": 20}
    a = sample_case(square("s"), {"s": zero["s"]}, seed=0, **given)
    b = sample_case(square("t"), {"t": zero["t"]}, seed=1, **given)
    both = sample_case(modular, {n: zero[n] for n in "st"}, seed=2, **given)
    entangled_llc = sample_case(entangled, zero, seed=3, **given)
    for llc, known in ((a, 0.5), (b, 0.5), (both, 1.0), (entangled_llc, 1 + monomial_estimate((2, 2), nbeta))):
        assert_close(llc, known)
    assert_sum([a, b], both)
    assert_higher(entangled_llc, both)


def linear_loss(blocks: list[tuple[int, int, int]]) -> tuple[Callable[[Params, Tensor], Tensor], dict[str, Tensor]]:
    """Return L = Σ ‖B A − B* A*‖² over blocks of widths (in, hidden, out), and its w* of full rank."""
    w_star = {}
    for i, (n_in, n_hidden, n_out) in enumerate(blocks):
        w_star |= {
            f"A{i}": torch.eye(n_hidden, n_in, dtype=torch.float64),
            f"B{i}": torch.eye(n_out, n_hidden, dtype=torch.float64),
        }
    true = [w_star[f"B{i}"] @ w_star[f"A{i}"] for i in range(len(blocks))]

    def loss(p: Params, batch: Tensor) -> Tensor:
        parts = [(p[f"B{i}"] @ p[f"A{i}"] - true[i]).square().sum((1, 2)) for i in range(len(blocks))]
        return torch.stack(parts).sum(0)

    return loss, w_star


def test_two_linear_networks_and_one_that_contains_both() -> None:
    """Two networks of widths 2-1-2 have λ = 3/2 each (Aoyagi); one of widths 4-2-4 for the same map has λ = 6."""
    settings = {"nbeta": 1e5, "gamma": 30.0, "largest": 4.0, "leapfrogs": 12}
    estimates = [
        sample_case(*linear_loss(blocks), seed=i, **settings)
        for i, blocks in enumerate([[(2, 1, 2)], [(2, 1, 2)], [(2, 1, 2)] * 2, [(4, 2, 4)]])
    ]
    known = [deep_linear_llc((2, 1, 2), 1).llc] * 2 + [
        2 * deep_linear_llc((2, 1, 2), 1).llc,
        deep_linear_llc((4, 2, 4), 2).llc,
    ]
    assert known == [1.5, 1.5, 3, 6]
    for single, llc in zip(estimates, known, strict=True):
        assert float(single.predicted) == pytest.approx(llc, rel=1e-2)
        assert_close(single, float(single.predicted))
    assert_sum(estimates[:2], estimates[2])
    assert_higher(estimates[3], estimates[2])


W_STAR = {
    "W0": torch.tensor([[1.0, 0.3], [-0.5, 1.0], [0.4, -1.0]]), "v0": torch.tensor([1.0, -0.8, 1.2]),
    "W1": torch.tensor([[0.9, -0.5], [0.6, 1.0], [-1.0, 0.2]]), "v1": torch.tensor([-1.0, 0.9, 0.8]),
}  # fmt: skip
W_STAR = {name: w.double()[None] for name, w in W_STAR.items()}
"""w* of two modules, with one row: each has two inputs, three ReLU neurons and one output."""


def hidden_neurons(p: Params, i: int, x: Tensor) -> Tensor:
    """Return the hidden neurons of module i, which reads inputs 2i and 2i + 1: [row, sample, neuron]."""
    return (x[:, :, 2 * i : 2 * i + 2] @ p[f"W{i}"].mT).relu()


def module_outputs(p: Params, which: tuple[int, ...], x: Tensor, *, linked: bool) -> Tensor:
    """Return the outputs [row, sample, module]."""
    outputs = [(hidden_neurons(p, i, x) @ p[f"v{i}"][:, :, None]).squeeze(2) for i in which]
    if linked:
        outputs[1] = outputs[1] + (hidden_neurons(p, 0, x) - hidden_neurons(W_STAR, 0, x)) @ values(1.0, -0.7, 0.5)
    return torch.stack(outputs, 2)


def relu_loss(which: tuple[int, ...], *, linked: bool) -> Callable[[Params, Tensor], Tensor]:
    """Return half the squared distance of the outputs from those at w*.

    With `linked`, module 1 also reads the hidden neurons of module 0, relative to their values at w*, where the link adds nothing.
    """
    truth = module_outputs(W_STAR, which, X[None], linked=linked)
    return lambda p, x: (module_outputs(p, which, x, linked=linked) - truth).square().sum(2) / 2


def hessian_eigenvalues(loss: Callable[[Params, Tensor], Tensor], w_star: Params) -> Tensor:
    """Return the eigenvalues of the Hessian at w*."""
    flat = torch.cat([w.flatten() for w in w_star.values()])[None]

    def gradient(w: Tensor) -> Tensor:
        parts = dict(zip(w_star, w.split([v.numel() for v in w_star.values()], 1), strict=True))
        value = loss({n: p.unflatten(1, w_star[n].shape) for n, p in parts.items()}, X[None]).mean(1).sum()
        return torch.autograd.grad(value, w, create_graph=True)[0]

    return full_spectrum(make_hessian_product(gradient, flat), flat).values[0]


@pytest.mark.slow
def test_relu_module_read_by_another_loses_its_free_directions() -> None:
    """Each module has 9 parameters, of which 3 are free because its neurons can be rescaled, so that λ = 3.

    If module 1 reads module 0, rescaling in module 0 changes module 1's output: 15 of 18 directions are curved and λ = 7.5 instead of 6.
    """
    both = (0, 1)
    cases = [((0,), False), ((1,), False), (both, False), (both, True)]
    estimates = []
    for seed, (which, linked) in enumerate(cases):
        w_star = {name: w[0] for name, w in W_STAR.items() if int(name[1]) in which}
        loss = relu_loss(which, linked=linked)
        spectrum = hessian_eigenvalues(loss, w_star)
        assert int((spectrum > 1e-8).sum()) == [6, 6, 12, 15][seed]
        largest = float(spectrum.max())
        estimates.append(sample_case(loss, w_star, nbeta=1e6, gamma=100.0, largest=largest, leapfrogs=12, seed=seed))
        assert float(estimates[-1].loss_at_start) == 0
        assert float(estimates[-1].predicted) == pytest.approx([3, 3, 6, 7.5][seed], rel=0.03)
        assert_close(estimates[-1], float(estimates[-1].predicted))
    assert_sum(estimates[:2], estimates[2])
    assert_higher(estimates[3], estimates[2])
