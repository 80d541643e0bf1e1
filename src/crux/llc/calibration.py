"""Losses with known learning coefficients, each with the value that an estimate should have at its nβ and step size."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from crux.llc.chains import ChainSettings, Checkpoint
from crux.llc.estimate import estimate_llc
from crux.llc.known import deep_linear_llc, monomial_estimate, monomial_llc, shallow_linear_estimate
from crux.llc.losses import NO_DATA, Batch, ChainLoss
from crux.llc.samplers.hmc import HMC, MALA
from crux.llc.samplers.rmsprop_sgld import RMSPROP
from crux.llc.samplers.sgld import SGLD

MAX_ERRORS = 3.0
"""Largest distance of an estimate from its prediction, in standard errors."""

MAX_DEVIATION = 0.03
"""Largest distance of an estimate from λ, as a share of λ. It applies if prediction and standard error are within the next two limits."""

MAX_PREDICTION_BIAS = 0.01
"""Distance of the prediction from λ, as a share of λ, below which the estimate must be close to λ."""

MAX_RELATIVE_ERROR = 0.01
"""Standard error, as a share of λ, below which the estimate must be close to λ."""


class KnownCase(NamedTuple):
    """A known learning coefficient, and the nβ and γ at which it is estimated."""

    name: str
    llc: float
    nbeta: float
    gamma: float
    expected: float | None
    """Value to which an unbiased sampler converges at this nβ; None: the prediction for a loss that is quadratic around w*
    (`LLC.predicted`)."""


class CaseGroup(NamedTuple):
    """Cases with one loss and one sampler, which run as one batch."""

    name: str
    cases: Sequence[KnownCase]
    loss: ChainLoss
    params: dict[str, Tensor]
    chains: ChainSettings


class CalibrationRow(NamedTuple):
    """The estimate of a case, with its prediction and diagnostics."""

    group: str
    sampler: str
    case: KnownCase
    mean: float
    standard_error: float
    predicted: float
    r_hat: float
    ess: float
    acceptance: float
    escaped: bool

    @property
    def errors(self) -> float:
        """Difference from the prediction, in standard errors."""
        return (self.mean - self.predicted) / self.standard_error

    @property
    def deviation(self) -> float:
        """Difference from λ, as a share of λ."""
        return self.mean / self.case.llc - 1

    @property
    def must_be_close(self) -> bool:
        """True if the estimate must be within 3 % of λ, because its prediction and standard error allow it."""
        return (
            abs(self.predicted / self.case.llc - 1) < MAX_PREDICTION_BIAS
            and self.standard_error < MAX_RELATIVE_ERROR * self.case.llc
        )

    @property
    def passed(self) -> bool:
        """True if the estimate agrees with its prediction and, if required, with λ."""
        return abs(self.errors) <= MAX_ERRORS and (not self.must_be_close or abs(self.deviation) <= MAX_DEVIATION)


def calibrate(
    group: CaseGroup, *, length: float, seed: int, checkpoint: Checkpoint | None = None
) -> list[CalibrationRow]:
    """Estimate all cases of a group, with its number of draws multiplied by `length`."""
    nbeta = torch.tensor([case.nbeta for case in group.cases], dtype=torch.float64)
    llc = estimate_llc(
        group.loss,
        group.params,
        gradient_data=NO_DATA,
        evaluation_data=NO_DATA,
        nbeta=nbeta,
        gamma=torch.tensor([case.gamma for case in group.cases], dtype=torch.float64),
        chains=group.chains._replace(draws=max(4, round(group.chains.draws * length))),
        seeds=[seed + i for i in range(len(nbeta))],
        checkpoint=checkpoint,
    )
    return [
        CalibrationRow(
            group.name,
            group.chains.sampler.name,
            case,
            float(llc.mean[i]),
            float(llc.standard_error[i]),
            float(llc.predicted[i]) if case.expected is None else case.expected,
            float(llc.r_hat[i]),
            float(llc.ess[i]),
            float(llc.acceptance[i]),
            bool(llc.escaped[i]),
        )
        for i, case in enumerate(group.cases)
    ]


def regular_groups() -> list[CaseGroup]:
    """Return ½ Σ a_i w_i² in d = 5 and 20 dimensions, λ = d/2, for every sampler; for SGLD at four step sizes and also at γ = nβ."""
    a_5 = torch.tensor([1, 1, 0.5, 0.3, 0.2], dtype=torch.float64)
    a_20 = torch.linspace(0.2, 1, 20, dtype=torch.float64)
    groups = []
    for a in (a_5, a_20):
        d, nbeta = len(a), 1e4
        # the largest curvature is 1, so that h = nβ (γ = 1 is negligible) and these are ε h = 0.05, …
        sizes = torch.tensor([0.05, 0.1, 1.0, 2.0], dtype=torch.float64) / nbeta

        def loss(p: dict[str, Tensor], batch: Batch, a: Tensor = a) -> Tensor:
            return (a * p["w"].square()).sum(1) / 2

        for sampler, eps, burn_in, every in (
            (SGLD(), sizes, 1000, 5),
            (RMSPROP, sizes[1:2] / 10, 1500, 5),
            (MALA, sizes[2:3], 100, 5),
            (HMC(leapfrogs=4), sizes[2:3], 30, 2),
        ):
            cases = [KnownCase(f"d = {d}, ε h = {e * nbeta:.2g}", d / 2, nbeta, 1.0, None) for e in eps]
            w = torch.zeros(len(eps), d, dtype=torch.float64)
            chains = ChainSettings(sampler, n_chains=16, burn_in=burn_in, draws=2000, every=every, step_size=eps)
            groups.append(CaseGroup("regular", cases, loss, {"w": w}, chains))
        localised = KnownCase(f"d = {d}, γ = nβ", d / 2, nbeta, nbeta, None)
        w = torch.zeros(1, d, dtype=torch.float64)
        chains = ChainSettings(SGLD(), n_chains=16, burn_in=100, draws=2000, every=5, step_size=None)
        groups.append(CaseGroup("regular", [localised], loss, {"w": w}, chains))
    return groups


EXPONENTS = ((2, 0), (2, 2), (2, 4), (4, 4), (2, 6))
"""Pairs of exponents of w1 and w2; with exponent 0, w2 does not occur in the loss."""


def reflect_into_interval(w: Tensor) -> Tensor:
    """Map the real line to [−1, 1] by reflections, so that chains are reflected at ±1 and the prior is uniform."""
    return ((w - 1).remainder(4) - 2).abs() - 1


def monomial_groups() -> list[CaseGroup]:
    """Return monomials w1^a w2^b on [−1, 1]² at three nβ each, with values by quadrature; most approach λ only like 1 / log nβ."""
    nbetas = (1e2, 1e3, 1e4)
    powers = torch.tensor([e for e in EXPONENTS for _ in nbetas], dtype=torch.float64)
    cases = [
        KnownCase(
            " ".join(f"w{i + 1}^{e}" for i, e in enumerate(exponents) if e),
            monomial_llc([e for e in exponents if e]).llc,
            nbeta,
            0.0,
            monomial_estimate([e for e in exponents if e], nbeta),
        )
        for exponents in EXPONENTS
        for nbeta in nbetas
    ]

    def loss(p: dict[str, Tensor], batch: Batch) -> Tensor:
        w = reflect_into_interval(p["w"]).square()
        # w is already squared
        exponent = powers.to(w).repeat_interleave(len(w) // len(powers), 0) / 2
        return torch.where(exponent > 0, w**exponent, 1).prod(1)

    eps = torch.tensor([1 / case.nbeta for case in cases], dtype=torch.float64)
    start = torch.zeros(len(cases), 2, dtype=torch.float64)
    chains = ChainSettings(HMC(leapfrogs=20), n_chains=32, burn_in=100, draws=600, every=1, step_size=eps)
    return [CaseGroup("monomial", cases, loss, {"w": start}, chains)]


def shallow_linear_cases(
    widths: tuple[int, int, int], *, rank: int, nbetas: Sequence[float]
) -> tuple[ChainLoss, dict[str, Tensor], list[KnownCase]]:
    """Return loss, w* and cases of a shallow linear network whose redundant factors are zero at w*.

    L = c ‖B A − B* A*‖² with c = 1 / ((n_in + 2) n_out) is the population loss for inputs uniform in the unit ball.
    """
    n_in, n_hidden, n_out = widths
    c = 1 / ((n_in + 2) * n_out)
    A, B = torch.zeros(n_hidden, n_in, dtype=torch.float64), torch.zeros(n_out, n_hidden, dtype=torch.float64)
    A[:rank, :rank], B[:rank, :rank] = torch.eye(rank), torch.eye(rank)
    truth = B @ A

    def loss(p: dict[str, Tensor], batch: Batch) -> Tensor:
        return c * (p["B"] @ p["A"] - truth.to(p["A"])).square().sum((1, 2))

    known = deep_linear_llc(widths, rank).llc
    cases = [
        KnownCase(
            f"{n_in}-{n_hidden}-{n_out}, rank {rank}",
            known,
            nbeta,
            1.0,
            shallow_linear_estimate(*widths, t=2 * nbeta * c, points=120) if rank == 0 else None,
        )
        for nbeta in nbetas
    ]
    params = {"A": A.expand(len(nbetas), -1, -1), "B": B.expand(len(nbetas), -1, -1)}
    return loss, params, cases


def linear_network_groups() -> list[CaseGroup]:
    """Return shallow linear networks of full rank and of rank 0.

    At full rank, the set of minima is a manifold: SGLD is compared with its prediction. At rank 0 it is not: HMC is compared with
    quadrature at γ = 1.
    """
    loss, params, cases = shallow_linear_cases((5, 3, 5), rank=3, nbetas=(1e5, 1e6))
    chains = ChainSettings(SGLD(), n_chains=16, burn_in=4000, draws=4000, every=2, step_size=None)
    groups = [CaseGroup("linear network", cases, loss, params, chains)]
    for widths in ((5, 3, 5), (4, 3, 8), (3, 8, 4)):
        loss, params, cases = shallow_linear_cases(widths, rank=0, nbetas=(1e3, 1e4))
        eps = torch.tensor([1 / case.nbeta for case in cases], dtype=torch.float64)
        chains = ChainSettings(HMC(leapfrogs=150), n_chains=32, burn_in=60, draws=240, every=1, step_size=eps)
        groups.append(CaseGroup("linear network", cases, loss, params, chains))
    return groups
