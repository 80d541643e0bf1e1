"""Known learning coefficients of monomials and deep linear networks, and exact estimates at finite nβ."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch

from crux.config.errors import UserError


class KnownLLC(NamedTuple):
    """λ and its multiplicity m, the order of the pole: F = λ log n − (m − 1) log log n."""

    llc: float
    multiplicity: int


def monomial_llc(exponents: Sequence[int]) -> KnownLLC:
    """Return λ = min_j 1/e_j of K = Π_j w_j^{e_j} with even e_j; m is the number of j that attain the minimum."""
    llc = min(1 / e for e in exponents)
    return KnownLLC(llc, sum(1 / e == llc for e in exponents))


def monomial_estimate(exponents: Sequence[int], nbeta: float) -> float:
    """Return nβ E[K] under exp(−nβ K) with a uniform prior on [−1, 1]^d, to which an unbiased estimate converges, by quadrature.

    −log K = Σ_j e_j (−log|w_j|) is a sum of exponentially distributed times with rates 1/e_j: the time to pass through a
    sequence of states with these exit rates and generator Q. Its density at s is (e^{Qs})_{first, last} / e_last.
    """
    rates = torch.tensor([1 / e for e in exponents], dtype=torch.float64)
    Q = torch.diag(-rates) + torch.diag(rates[:-1], 1)
    last = math.log(max(nbeta, 1)) + 60 / float(rates.min())  # the density beyond is negligible
    x, weights = np.polynomial.legendre.leggauss(20)  # per interval between two edges
    edges = np.linspace(0, last, 2001)
    half = (edges[1:] - edges[:-1])[:, None] / 2
    s = torch.from_numpy((edges[:-1, None] + half * (x + 1)).ravel())
    density = torch.linalg.matrix_exp(Q * s[:, None, None])[:, 0, -1] * rates[-1]
    energy = nbeta * torch.exp(-s)
    mass = torch.from_numpy((half * weights).ravel()) * density * torch.exp(-energy)
    return float((mass * energy).sum() / mass.sum())


def deep_linear_llc(widths: Sequence[int], rank: int) -> KnownLLC:
    """Return λ and m of a deep linear network with layer widths H_i and a true map of rank r (Aoyagi).

    With M_i = H_i − r in ascending order, choose the n + 1 smallest (n is Aoyagi's l) such that their sum Σ satisfies
    Σ ≥ n · (largest chosen) and Σ < n · (next M_i). With a = Σ − (⌈Σ/n⌉ − 1) n:
        λ = [r(H_0 + H_L) − r²]/2 + a(n − a)/(4n) − n(n − 1)/4 (Σ/n)² + ½ Σ_{i<j} M_i M_j,   m = a(n − a) + 1.

    Raises:
        UserError: if no network of these widths has that rank.
    """
    if len(widths) < 2 or not 0 <= rank <= min(widths):
        raise UserError(f"rank={rank}: a linear network of widths {tuple(widths)} has rank 0 to {min(widths)}")
    M = sorted(Fraction(width - rank) for width in widths)
    for n in range(1, len(M)):
        chosen, rest = M[: n + 1], M[n + 1 :]
        total = sum(chosen)
        if total >= n * chosen[-1] and (not rest or total < n * rest[0]):
            break
    else:
        raise AssertionError(f"no set of widths for {widths}, rank {rank}")
    a = int(total) - (math.ceil(total / n) - 1) * n
    pairs = sum(x * y for i, x in enumerate(chosen) for y in chosen[i + 1 :])
    llc = Fraction(rank * (widths[0] + widths[-1]) - rank**2, 2)
    llc += Fraction(a * (n - a), 4 * n) - Fraction(n * (n - 1), 4) * (total / n) ** 2 + pairs / 2
    return KnownLLC(float(llc), a * (n - a) + 1)


def shallow_linear_estimate(n_in: int, n_hidden: int, n_out: int, *, t: float, points: int) -> float:
    """Return nβ E[L] for L = c ‖B A‖² with true map 0, prior N(0, 1/γ) on all weights and t = 2 nβ c / γ², exact up to quadrature.

    Given A, the n_out rows of B are Gaussian: Z = E det(1 + t A Aᵀ)^{−n_out/2}. The k = min(n_in, n_hidden) eigenvalues x_i of
    A Aᵀ that are not identically zero have density Π_i x_i^{(|n_in − n_hidden| − 1)/2} e^{−x_i/2} Π_{i<j} |x_i − x_j|, and
    nβ E[L] = −∂ log Z / ∂ log nβ = (n_out/2) E Σ_i t x_i / (1 + t x_i).

    Args:
        points: quadrature points in each of the k dimensions, evenly spaced in log x.
    """
    k, extra = min(n_in, n_hidden), abs(n_in - n_hidden)
    y = np.linspace(-math.log(1 + t) - 50 / (extra + 1), math.log(200.0), points)
    x = np.exp(y)
    log_factor = (extra - 1) / 2 * y - x / 2 - n_out / 2 * np.log1p(t * x) + y
    share = t * x / (1 + t * x)
    log_mass, gain = np.zeros([1] * k), np.zeros([1] * k)
    # indexing with views[i] puts the values of x_i on axis i of the k-dimensional grid
    views = [tuple(slice(None) if axis == i else None for axis in range(k)) for i in range(k)]
    with np.errstate(divide="ignore"):
        for i in range(k):
            log_mass, gain = log_mass + log_factor[views[i]], gain + share[views[i]]
            for j in range(i):
                log_mass = log_mass + np.log(np.abs(x[views[i]] - x[views[j]]))
    mass = np.exp(log_mass - log_mass.max())
    return float(n_out / 2 * (mass * gain).sum() / mass.sum())
