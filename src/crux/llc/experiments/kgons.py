"""Regular k-gons of toy models in two dimensions, one feature active (Chen et al. 2310.06301): their λ is (3k − 1)/2.

Of c features k are the corners; the others are dead (W = 0, b < 0: flat in all three parameters), or alive in their bias alone
(b = 1/2c, "k+": three more curved parameters, λ + 3/2 for each). The rotation of the polygon is the one flat direction left.
All of them are embedded in the largest c, so that they run as one program: a feature that a case does not have never occurs and
counts nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from crux.llc.calibration import Case, Group
from crux.llc.chains import ChainSettings
from crux.llc.losses import Batch, Loss
from crux.llc.samplers.hmc import HMC
from crux.llc.samplers.interface import Sampler
from crux.llc.samplers.sgld import SGLD
from crux.toy.exact.lbfgs import minimise
from crux.toy.exact.one_active import one_active_tied_loss
from crux.toy.geometry.polytopes import polygon

START = {4: (1.0, 0.0), 5: (1.1705, -0.2823), 6: (1.3205, -0.6181), 7: (1.4484, -0.9669), 8: (1.5504, -1.2912)}
"""Length and bias of the corners, about; polished before use."""

CHAINS = 8

DEAD = -0.5
"""Bias of a dead feature: any negative number."""


class Kgon(NamedTuple):
    """A critical point of the toy model."""

    corners: int
    plus: int
    """Features that are alive in their bias alone."""
    features: int

    @property
    def name(self) -> str:
        return f"{self.corners}{'+' * self.plus}-gon, {self.features} features"

    @property
    def llc(self) -> float:
        """λ, known for 5 to 8 corners; the Hessian of a 4-gon does not exist."""
        return (3 * self.corners - 1) / 2 + 3 * self.plus / 2


def present(kgons: Sequence[Kgon]) -> Tensor:
    """1 for each feature that a case has [case, largest number of features], else 0."""
    most = max(k.features for k in kgons)
    return torch.tensor([[float(i < k.features) for i in range(most)] for k in kgons], dtype=torch.float64)


def kgon_loss(kgons: Sequence[Kgon], *, n_chains: int) -> Loss:
    """The population loss of every chain: E Σ_i (x_i − x'_i)² / c over one active feature, Chen et al.'s H / 3c."""
    here = present(kgons).repeat_interleave(n_chains, 0)
    often = here / here.sum(1, keepdim=True)

    def loss(p: dict[str, Tensor], batch: Batch) -> Tensor:
        return one_active_tied_loss(
            p["W"], p["b"], importance=here.to(p["b"]), probabilities=often.to(p["b"]), signed=False
        )

    return loss


def polished(kgons: Sequence[Kgon]) -> dict[str, Tensor]:
    """The points themselves: corners by symmetry, then minimised until the gradient vanishes."""
    most = max(k.features for k in kgons)
    W, b = torch.zeros(len(kgons), 2, most, dtype=torch.float64), torch.zeros(len(kgons), most, dtype=torch.float64)
    for row, (k, plus, c) in enumerate(kgons):
        length, bias = START[k]
        W[row, :, :k] = length * polygon(k)
        b[row, :k], b[row, k : k + plus], b[row, k + plus : c] = bias, 1 / (2 * c), DEAD
    full = present(kgons)
    often = full / full.sum(1, keepdim=True)

    def of(parameters: tuple[Tensor, ...], which: Tensor) -> Tensor:
        W, b = parameters
        return one_active_tied_loss(W, b, importance=full[which], probabilities=often[which], signed=False)

    found = minimise(of, (W, b), max_iterations=200, gradient_tolerance=1e-11, history=10)
    W, b = found.parameters
    return {"W": W, "b": b}


def localisation(kgon: Kgon) -> float:
    """Return γ: 1, and 100 next to a dead feature, which at γ = 1 wanders until |W_dead| > 0.24, where it switches corners on: loss that no
    quadratic predicts."""
    return 100.0 if kgon.features > kgon.corners + kgon.plus else 1.0


def kgon_groups() -> list[Group]:
    """5- to 8-gons with 8 chains: SGLD at the default step size at two nβ, and HMC, which no step size biases.

    The softest direction of the 8-gon is 400 times softer than the stiffest: SGLD forgets it in 8,000 steps, HMC in a few moves.
    """
    kgons = [Kgon(5, 0, 5), Kgon(5, 0, 6), Kgon(5, 1, 6), Kgon(6, 0, 6), Kgon(7, 0, 7), Kgon(8, 0, 8)]

    def group(
        nbetas: tuple[float, ...], share: float | None, sampler: Sampler, *, burn_in: int, draws: int, every: int
    ) -> Group:
        each = [kgon for kgon in kgons for _ in nbetas]
        cases = [Case(kgon.name, kgon.llc, nbeta, localisation(kgon), None) for kgon in kgons for nbeta in nbetas]
        eps = None if share is None else torch.tensor([share / case.nbeta for case in cases], dtype=torch.float64)
        loss = kgon_loss(each, n_chains=CHAINS)
        return Group("k-gon", cases, loss, polished(each), ChainSettings(sampler, CHAINS, burn_in, draws, every, eps))

    return [
        group((1e5,), 0.7, HMC(leapfrogs=30), burn_in=100, draws=1200, every=1),
        group((1e5, 1e6), None, SGLD(), burn_in=15_000, draws=20_000, every=2),
    ]


def escaping() -> Group:
    """Return a 5-gon next to a dead feature, at an nβ so low that the chains find what is better: the estimate is negative."""
    kgon, eps = Kgon(5, 0, 6), torch.tensor([0.7 / 1e3], dtype=torch.float64)
    case, loss = Case(kgon.name, kgon.llc, 1e3, 1.0, None), kgon_loss([kgon], n_chains=CHAINS)
    chains = ChainSettings(HMC(leapfrogs=30), CHAINS, 500, 400, 1, eps)
    return Group("k-gon", [case], loss, polished([kgon]), chains)
