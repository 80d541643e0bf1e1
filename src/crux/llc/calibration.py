"""Losses whose learning coefficients are known, each with the value that an estimate should have at its nβ and step size."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from crux.llc.chains import ChainSettings, Checkpoint
from crux.llc.estimate import estimate_llc
from crux.llc.known import deep_linear, monomial, monomial_at, shallow_linear_at
from crux.llc.losses import NO_DATA, Batch, Loss
from crux.llc.samplers.hmc import HMC, MALA
from crux.llc.samplers.rmsprop_sgld import RMSPROP
from crux.llc.samplers.sgld import SGLD

ERRORS = 3.0
"""Standard errors by which an estimate may miss its prediction."""

CLOSE, WITHIN, SURE = 0.01, 0.03, 0.01
"""If a prediction is so close to λ, and the estimate so sure, as shares of λ, the estimate must be within 3 % of λ."""


class Case(NamedTuple):
    """One learning coefficient."""

    name: str
    llc: float
    nbeta: float
    gamma: float
    expected: float | None
    """What an unbiased sampler converges to at this nβ; None: what the estimate's own prediction says, for losses that are quadratic
    around w*."""


class Group(NamedTuple):
    """Cases of one loss and one sampler, which run as one program."""

    name: str
    cases: Sequence[Case]
    loss: Loss
    params: dict[str, Tensor]
    chains: ChainSettings


class Row(NamedTuple):
    """How a case came out."""

    group: str
    sampler: str
    case: Case
    mean: float
    standard_error: float
    predicted: float
    r_hat: float
    ess: float
    acceptance: float
    escaped: bool

    @property
    def errors(self) -> float:
        """Distance from the prediction in standard errors."""
        return (self.mean - self.predicted) / self.standard_error

    @property
    def off(self) -> float:
        """Distance from λ as a share of it."""
        return self.mean / self.case.llc - 1

    @property
    def must_be_close(self) -> bool:
        """Whether the estimate must be within 3 % of λ."""
        return abs(self.predicted / self.case.llc - 1) < CLOSE and self.standard_error < SURE * self.case.llc

    @property
    def passed(self) -> bool:
        return abs(self.errors) <= ERRORS and (not self.must_be_close or abs(self.off) <= WITHIN)


def calibrate(group: Group, *, length: float, seed: int, checkpoint: Checkpoint | None = None) -> list[Row]:
    """Sample all cases of a group, with `length` times as many draws as it says, and compare them with what they should be."""
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
        Row(
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


def regular() -> list[Group]:
    """½ Σ a_i w_i² in 5 and in 20 dimensions, d/2, with every sampler; with SGLD at three step sizes too, and under a strong γ."""
    few = torch.tensor([1, 1, 0.5, 0.3, 0.2], dtype=torch.float64)
    many = torch.linspace(0.2, 1, 20, dtype=torch.float64)
    groups = []
    for a in (few, many):
        d, nbeta = len(a), 1e4
        sizes = torch.tensor([0.05, 0.1, 1.0, 2.0], dtype=torch.float64) / nbeta

        def loss(p: dict[str, Tensor], batch: Batch, a: Tensor = a) -> Tensor:
            return (a * p["w"].square()).sum(1) / 2

        for sampler, eps, burn_in, every in (
            (SGLD(), sizes, 1000, 5),
            (RMSPROP, sizes[1:2] / 10, 1500, 5),
            (MALA, sizes[2:3], 100, 5),
            (HMC(leapfrogs=4), sizes[2:3], 30, 2),
        ):
            cases = [Case(f"d = {d}, ε h = {e * nbeta:.2g}", d / 2, nbeta, 1.0, None) for e in eps]
            w = torch.zeros(len(eps), d, dtype=torch.float64)
            chains = ChainSettings(sampler, 16, burn_in, 2000, every, eps)
            groups.append(Group("regular", cases, loss, {"w": w}, chains))
        localised = Case(f"d = {d}, γ = nβ", d / 2, nbeta, nbeta, None)
        w, chains = torch.zeros(1, d, dtype=torch.float64), ChainSettings(SGLD(), 16, 100, 2000, 5, None)
        groups.append(Group("regular", [localised], loss, {"w": w}, chains))
    return groups


EXPONENTS = ((2, 0), (2, 2), (2, 4), (4, 4), (2, 6))
"""Of w1 and w2."""


def folded(w: Tensor) -> Tensor:
    """Reflect the line into [−1, 1]: under a loss of the folded w, chains that cross a wall come back, and the prior is uniform."""
    return ((w - 1).remainder(4) - 2).abs() - 1


def monomials() -> list[Group]:
    """Normal crossings w1^a w2^b on [−1, 1]² against quadrature, at three nβ each: most approach λ like 1/log nβ only."""
    nbetas = (1e2, 1e3, 1e4)
    powers = torch.tensor([e for e in EXPONENTS for _ in nbetas], dtype=torch.float64)
    cases = [
        Case(
            " ".join(f"w{i + 1}^{e}" for i, e in enumerate(exponents) if e),
            monomial([e for e in exponents if e]).llc,
            nbeta,
            0.0,
            monomial_at([e for e in exponents if e], nbeta),
        )
        for exponents in EXPONENTS
        for nbeta in nbetas
    ]

    def loss(p: dict[str, Tensor], batch: Batch) -> Tensor:
        w = folded(p["w"]).square()
        each = powers.to(w).repeat_interleave(len(w) // len(powers), 0) / 2
        return torch.where(each > 0, w**each, 1).prod(1)

    eps = torch.tensor([1 / case.nbeta for case in cases], dtype=torch.float64)
    start = torch.zeros(len(cases), 2, dtype=torch.float64)
    return [Group("monomial", cases, loss, {"w": start}, ChainSettings(HMC(leapfrogs=20), 32, 100, 600, 1, eps))]


def linear(
    in_widths: tuple[int, int, int], *, rank: int, nbetas: Sequence[float]
) -> tuple[Loss, dict[str, Tensor], list[Case]]:
    """A shallow linear network at w* with the redundant factors zero, inputs uniform in the unit ball: L = c ‖B A − B* A*‖²,
    c = 1 / ((n_in + 2) n_out)."""
    n_in, n_hidden, n_out = in_widths
    c = 1 / ((n_in + 2) * n_out)
    A, B = torch.zeros(n_hidden, n_in, dtype=torch.float64), torch.zeros(n_out, n_hidden, dtype=torch.float64)
    A[:rank, :rank], B[:rank, :rank] = torch.eye(rank), torch.eye(rank)
    truth = B @ A

    def loss(p: dict[str, Tensor], batch: Batch) -> Tensor:
        return c * (p["B"] @ p["A"] - truth.to(p["A"])).square().sum((1, 2))

    known = deep_linear(in_widths, rank).llc
    cases = [
        Case(
            f"{n_in}-{n_hidden}-{n_out}, rank {rank}",
            known,
            nbeta,
            1.0,
            shallow_linear_at(*in_widths, t=2 * nbeta * c, points=120) if rank == 0 else None,
        )
        for nbeta in nbetas
    ]
    params = {"A": A.expand(len(nbetas), -1, -1), "B": B.expand(len(nbetas), -1, -1)}
    return loss, params, cases


def linear_networks() -> list[Group]:
    """Full rank, where the minimum is smooth: SGLD, as predicted. Rank 0, where it is not: HMC, against quadrature at γ = 1."""
    loss, params, cases = linear((5, 3, 5), rank=3, nbetas=(1e5, 1e6))
    groups = [Group("linear network", cases, loss, params, ChainSettings(SGLD(), 16, 4000, 4000, 2, None))]
    for widths in ((5, 3, 5), (4, 3, 8), (3, 8, 4)):
        loss, params, cases = linear(widths, rank=0, nbetas=(1e3, 1e4))
        eps = torch.tensor([1 / case.nbeta for case in cases], dtype=torch.float64)
        chains = ChainSettings(HMC(leapfrogs=150), 32, 60, 240, 1, eps)
        groups.append(Group("linear network", cases, loss, params, chains))
    return groups
