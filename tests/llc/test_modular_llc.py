"""A modular network against an entangled one of as many parameters and the same loss at w*: its λ is lower, and the sum of its modules'.

Every value is known: by the dimension of the set of minima where that is a manifold (λ = codimension / 2), by quadrature where it is
not. Estimates by Hamiltonian Monte Carlo, which no step size biases.
"""

from collections.abc import Callable

import pytest
import torch
from tests.support.quadratic_losses import estimate, values
from torch import Tensor

from crux.llc.calibration import folded
from crux.llc.estimate import LLC
from crux.llc.hessian import full_spectrum, product_at
from crux.llc.known import deep_linear, monomial_at
from crux.llc.losses import Fixed
from crux.llc.samplers.hmc import HMC

Params = dict[str, Tensor]
X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def close(found: LLC, expected: float) -> None:
    """Within three standard errors, which are small."""
    assert float(found.standard_error) < 0.03 * max(expected, 1)
    assert abs(float(found.mean) - expected) < 3 * float(found.standard_error), (
        found.mean,
        found.standard_error,
        expected,
    )
    assert not bool(found.escaped)


def sum_of(parts: list[LLC], whole: LLC) -> None:
    """λ of the whole is that of its modules together, by the estimates alone."""
    error = float(torch.stack([p.standard_error.square() for p in (*parts, whole)]).sum().sqrt())
    assert abs(float(sum(p.mean for p in parts) - whole.mean)) < 3 * error


def higher(entangled: LLC, modular: LLC) -> None:
    """By more than noise."""
    assert float(entangled.mean - modular.mean) > 5 * float(entangled.standard_error + modular.standard_error)


def sampled(
    loss: Callable[[Params, Tensor], Tensor],
    at: Params,
    *,
    nbeta: float,
    gamma: float,
    largest: float,
    leapfrogs: int,
    seed: int,
) -> LLC:
    """One case, in steps of 1 / (nβ · largest curvature)."""
    data = Fixed(X)
    return estimate(
        loss, params={name: w[None].clone() for name, w in at.items()}, gradient_data=data, evaluation_data=data,
        nbeta=values(nbeta), gamma=values(gamma), sampler=HMC(leapfrogs=leapfrogs), n_chains=32, burn_in=50, draws=120,
        seeds=[seed], step_size=values(1 / (nbeta * largest)),
    )  # fmt: skip


@pytest.mark.slow
def test_free_directions_that_interact_are_not_free() -> None:
    """Modules s² and t², each with a free coordinate, λ = ½ + ½; with the free ones' product as a third output, u² v²: more by 0.39.

    Each of u and v alone is free still: it is the two together that are not.
    """

    def square(name: str) -> Callable[[Params, Tensor], Tensor]:
        return lambda p, batch: p[name].square().squeeze(1)

    def modular(p: Params, batch: Tensor) -> Tensor:
        return (p["s"].square() + p["t"].square()).squeeze(1)

    def entangled(p: Params, batch: Tensor) -> Tensor:
        return modular(p, batch) + (folded(p["u"]) * folded(p["v"])).square().squeeze(1)

    nbeta = 1e3
    zero = {name: torch.zeros(1, dtype=torch.float64) for name in "stuv"}
    given = {"nbeta": nbeta, "gamma": 0.0, "largest": 2.0, "leapfrogs": 20}
    a = sampled(square("s"), {"s": zero["s"]}, seed=0, **given)
    b = sampled(square("t"), {"t": zero["t"]}, seed=1, **given)
    both = sampled(modular, {n: zero[n] for n in "st"}, seed=2, **given)
    joined = sampled(entangled, zero, seed=3, **given)
    for found, known in ((a, 0.5), (b, 0.5), (both, 1.0), (joined, 1 + monomial_at((2, 2), nbeta))):
        close(found, known)
    sum_of([a, b], both)
    higher(joined, both)


def linear_loss(blocks: list[tuple[int, int, int]]) -> tuple[Callable[[Params, Tensor], Tensor], dict[str, Tensor]]:
    """L = ‖B A − B* A*‖² over blocks of widths (in, hidden, out), each at a w* of full rank."""
    at = {}
    for i, (n_in, n_hidden, n_out) in enumerate(blocks):
        at |= {
            f"A{i}": torch.eye(n_hidden, n_in, dtype=torch.float64),
            f"B{i}": torch.eye(n_out, n_hidden, dtype=torch.float64),
        }
    true = [at[f"B{i}"] @ at[f"A{i}"] for i in range(len(blocks))]

    def loss(p: Params, batch: Tensor) -> Tensor:
        parts = [(p[f"B{i}"] @ p[f"A{i}"] - true[i]).square().sum((1, 2)) for i in range(len(blocks))]
        return torch.stack(parts).sum(0)

    return loss, at


def test_two_linear_networks_against_one_that_could_be_both() -> None:
    """Two of widths 2-1-2, 3/2 each by Aoyagi; one of widths 4-2-4 for the same map: 6."""
    settings = {"nbeta": 1e5, "gamma": 30.0, "largest": 4.0, "leapfrogs": 12}
    found = [
        sampled(*linear_loss(blocks), seed=i, **settings)
        for i, blocks in enumerate([[(2, 1, 2)], [(2, 1, 2)], [(2, 1, 2)] * 2, [(4, 2, 4)]])
    ]
    known = [deep_linear((2, 1, 2), 1).llc] * 2 + [2 * deep_linear((2, 1, 2), 1).llc, deep_linear((4, 2, 4), 2).llc]
    assert known == [1.5, 1.5, 3, 6]
    for one, llc in zip(found, known, strict=True):
        assert float(one.predicted) == pytest.approx(llc, rel=1e-2)
        close(one, float(one.predicted))
    sum_of(found[:2], found[2])
    higher(found[3], found[2])


N = 3
"""ReLU neurons of a module, of two inputs and one output."""
STAR = {
    "W0": torch.tensor([[1.0, 0.3], [-0.5, 1.0], [0.4, -1.0]]), "v0": torch.tensor([1.0, -0.8, 1.2]),
    "W1": torch.tensor([[0.9, -0.5], [0.6, 1.0], [-1.0, 0.2]]), "v1": torch.tensor([-1.0, 0.9, 0.8]),
}  # fmt: skip
STAR = {name: w.double()[None] for name, w in STAR.items()}
"""w*, a row."""


def hidden(p: Params, i: int, x: Tensor) -> Tensor:
    return (x[:, :, 2 * i : 2 * i + 2] @ p[f"W{i}"].mT).relu()


def output(p: Params, which: tuple[int, ...], x: Tensor, *, linked: bool) -> Tensor:
    """[row, sample, module]"""
    found = [(hidden(p, i, x) @ p[f"v{i}"][:, :, None]).squeeze(2) for i in which]
    if linked:
        found[1] = found[1] + (hidden(p, 0, x) - hidden(STAR, 0, x)) @ values(1.0, -0.7, 0.5)
    return torch.stack(found, 2)


def relu_loss(which: tuple[int, ...], *, linked: bool) -> Callable[[Params, Tensor], Tensor]:
    """Behavioural: half the squared distance from what the network at w* gives. `linked`: module 1 reads the hidden neurons of module 0
    too, each against what it was at w*, where the link adds nothing."""
    truth = output(STAR, which, X[None], linked=linked)
    return lambda p, x: (output(p, which, x, linked=linked) - truth).square().sum(2) / 2


def curvatures(loss: Callable[[Params, Tensor], Tensor], at: Params) -> Tensor:
    """Eigenvalues of the Hessian at w*."""
    flat = torch.cat([w.flatten() for w in at.values()])[None]

    def gradient(w: Tensor) -> Tensor:
        parts = dict(zip(at, w.split([v.numel() for v in at.values()], 1), strict=True))
        value = loss({n: p.unflatten(1, at[n].shape) for n, p in parts.items()}, X[None]).mean(1).sum()
        return torch.autograd.grad(value, w, create_graph=True)[0]

    return full_spectrum(product_at(gradient, flat), flat).values[0]


@pytest.mark.slow
def test_a_relu_module_that_is_read_by_another_loses_its_free_directions() -> None:
    """Each module: 9 parameters, 3 of them free by rescaling its neurons, λ = 3. Linked, one's rescaling shows in the other's
    output: 15 of 18 directions count, λ = 7.5 against 6. Both have loss 0."""
    both = (0, 1)
    cases = [((0,), False), ((1,), False), (both, False), (both, True)]
    found = []
    for seed, (which, linked) in enumerate(cases):
        at = {name: w[0] for name, w in STAR.items() if int(name[1]) in which}
        loss = relu_loss(which, linked=linked)
        spectrum = curvatures(loss, at)
        assert int((spectrum > 1e-8).sum()) == [6, 6, 12, 15][seed]
        largest = float(spectrum.max())
        found.append(sampled(loss, at, nbeta=1e6, gamma=100.0, largest=largest, leapfrogs=12, seed=seed))
        assert float(found[-1].loss_at_start) == 0
        assert float(found[-1].predicted) == pytest.approx([3, 3, 6, 7.5][seed], rel=0.03)
        close(found[-1], float(found[-1].predicted))
    sum_of(found[:2], found[2])
    higher(found[3], found[2])
