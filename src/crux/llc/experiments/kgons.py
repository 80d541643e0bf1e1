"""Regular k-gons: critical points of toy models in two dimensions with one active feature (Chen et al. 2310.06301).

Of c features, k are the corners, and λ = (3k − 1)/2. The others are dead (W = 0, b < 0: the loss is flat in all three parameters) or have
zero weights and a positive bias b = 1/2c ("k+": three more curved parameters, λ + 3/2 for each). The rotation of the polygon is the only
remaining flat direction. All cases are embedded in the largest c, so that they run as one batch; a feature that a case does not have never
occurs and does not contribute to its loss.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from crux.llc.calibration import CaseGroup, KnownCase
from crux.llc.chains import ChainSettings
from crux.llc.losses import Batch, ChainLoss
from crux.llc.samplers.hmc import HMC
from crux.llc.samplers.interface import Sampler
from crux.llc.samplers.sgld import SGLD
from crux.toy.exact.lbfgs import minimise
from crux.toy.exact.one_active import one_active_tied_loss
from crux.toy.geometry.polytopes import polygon

START_POINTS = {4: (1.0, 0.0), 5: (1.1705, -0.2823), 6: (1.3205, -0.6181), 7: (1.4484, -0.9669), 8: (1.5504, -1.2912)}
"""Approximate length and bias of the corners, for each k; optimised before use."""

CHAINS = 8
"""Chains per case of the calibration."""

DEAD_BIAS = -0.5
"""Bias of a dead feature; any negative number would do."""


class Kgon(NamedTuple):
    """A k-gon: the number of its corners and other features."""

    corners: int
    plus: int
    """Number of features with zero weights and a positive bias."""
    features: int
    """Number of all features; those beyond `corners` + `plus` are dead."""

    @property
    def name(self) -> str:
        return f"{self.corners}{'+' * self.plus}-gon, {self.features} features"

    @property
    def llc(self) -> float:
        """λ, known for 5 to 8 corners; at a 4-gon the Hessian does not exist."""
        return (3 * self.corners - 1) / 2 + 3 * self.plus / 2


def feature_presence(kgons: Sequence[Kgon]) -> Tensor:
    """Return 1 for each feature that a case has and 0 for the others, [case, largest number of features]."""
    n_features = max(k.features for k in kgons)
    return torch.tensor([[float(i < k.features) for i in range(n_features)] for k in kgons], dtype=torch.float64)


def kgon_loss(kgons: Sequence[Kgon], *, n_chains: int) -> ChainLoss:
    """Return the population loss of every chain, E Σ_i (x_i − x'_i)² / c with one active feature (Chen et al.'s H / 3c)."""
    is_present = feature_presence(kgons).repeat_interleave(n_chains, 0)
    probabilities = is_present / is_present.sum(1, keepdim=True)

    def loss(p: dict[str, Tensor], batch: Batch) -> Tensor:
        return one_active_tied_loss(
            p["W"], p["b"], importance=is_present.to(p["b"]), probabilities=probabilities.to(p["b"]), signed=False
        )

    return loss


def optimise_kgons(kgons: Sequence[Kgon]) -> dict[str, Tensor]:
    """Compute the parameters of the k-gons: start from a symmetric polygon, then minimise until the gradient vanishes."""
    n_features = max(k.features for k in kgons)
    W = torch.zeros(len(kgons), 2, n_features, dtype=torch.float64)
    b = torch.zeros(len(kgons), n_features, dtype=torch.float64)
    for row, (k, plus, c) in enumerate(kgons):  # corners, features with positive bias, all features
        length, bias = START_POINTS[k]
        W[row, :, :k] = length * polygon(k)
        b[row, :k], b[row, k : k + plus], b[row, k + plus : c] = bias, 1 / (2 * c), DEAD_BIAS
    is_present = feature_presence(kgons)
    probabilities = is_present / is_present.sum(1, keepdim=True)

    def loss(parameters: tuple[Tensor, ...], which: Tensor) -> Tensor:
        W, b = parameters
        return one_active_tied_loss(
            W, b, importance=is_present[which], probabilities=probabilities[which], signed=False
        )

    optimum = minimise(loss, (W, b), max_iterations=200, gradient_tolerance=1e-11, history=10)
    W, b = optimum.parameters
    return {"W": W, "b": b}


def default_gamma(kgon: Kgon) -> float:
    """Return the default γ: 1, or 100 with a dead feature.

    At γ = 1 a dead feature would diffuse until |W_dead| > 0.24, where it activates corners; no quadratic predicts that loss.
    """
    return 100.0 if kgon.features > kgon.corners + kgon.plus else 1.0


def kgon_groups() -> list[CaseGroup]:
    """Return 5- to 8-gons with 8 chains each, for SGLD with the default step size at two nβ, and for HMC.

    The smallest curvature of the 8-gon is 400 times smaller than the largest: SGLD needs 8,000 steps to decorrelate, HMC a few moves.
    """
    kgons = [Kgon(5, 0, 5), Kgon(5, 0, 6), Kgon(5, 1, 6), Kgon(6, 0, 6), Kgon(7, 0, 7), Kgon(8, 0, 8)]

    def make_group(
        nbetas: tuple[float, ...], eps_nbeta: float | None, sampler: Sampler, *, burn_in: int, draws: int, every: int
    ) -> CaseGroup:
        per_case = [kgon for kgon in kgons for _ in nbetas]
        cases = [KnownCase(kgon.name, kgon.llc, nbeta, default_gamma(kgon), None) for kgon in kgons for nbeta in nbetas]
        eps = (
            None if eps_nbeta is None else torch.tensor([eps_nbeta / case.nbeta for case in cases], dtype=torch.float64)
        )
        loss = kgon_loss(per_case, n_chains=CHAINS)
        return CaseGroup(
            "k-gon", cases, loss, optimise_kgons(per_case), ChainSettings(sampler, CHAINS, burn_in, draws, every, eps)
        )

    return [
        make_group((1e5,), 0.7, HMC(leapfrogs=30), burn_in=100, draws=1200, every=1),
        make_group((1e5, 1e6), None, SGLD(), burn_in=15_000, draws=20_000, every=2),
    ]


def escaping_group() -> CaseGroup:
    """Return a 5-gon with a dead feature, at an nβ so low that the chains find lower losses and the estimate is negative."""
    kgon, eps = Kgon(5, 0, 6), torch.tensor([0.7 / 1e3], dtype=torch.float64)
    case, loss = KnownCase(kgon.name, kgon.llc, 1e3, 1.0, None), kgon_loss([kgon], n_chains=CHAINS)
    chains = ChainSettings(HMC(leapfrogs=30), CHAINS, burn_in=500, draws=400, every=1, step_size=eps)
    return CaseGroup("k-gon", [case], loss, optimise_kgons([kgon]), chains)
