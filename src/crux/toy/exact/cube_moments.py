"""Moments of a ReLU over the unit cube: E[ReLU(u)], E[ReLU(u)²] and E[t_k ReLU(u)] for u = b + a·t, t uniform on [0, 1]^k.

The mean over one variable t_i of a function's derivative is a difference quotient,

    ∫₀¹ f'(c + a_i t) dt = (f(c + a_i) − f(c)) / a_i ,

and d of them at once are a signed sum over the 2^d corners, with f = 2 u₊^(d+2) / (d+2)! for the square. Exact, but it loses
about 2^(d+1) / (d+2)! / Π|a_i / R| units in the last place, R = Σ|a_i|, and another 1/|a_i / R| in the gradient. So:

- the last variable is integrated with its sum of powers multiplied out, which cancels nothing, whatever its a;
- of the others the largest |a_i|, as many as keep the gradient's loss below ε^(-3/8) units (1e-10 in float64), become differences;
- the rest, by then small beside the others, are left to Gauss–Legendre points. Their integrand is smooth but for kinks
  of order d + 2 met over a short way: errors above 1e-11 R² were not met.

A row whose u keeps its sign over the whole cube is a polynomial or zero. All of it is differentiable, with finite values and
gradients at a = 0.
"""

from functools import cache
from itertools import product
from math import factorial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

POINTS = (1, 8, 8, 6, 5, 4, 3)
"""Gauss–Legendre points a variable, by the number of variables left to them; 3 beyond."""

TINY = 1e-30
"""R below which a row that changes its sign counts as zero: its moments are at most R²."""


class ReluMoments(NamedTuple):
    """Moments of ReLU(b + a·t) over the unit cube."""

    mean: Float[Tensor, "rows"]
    """E[ReLU(u)]"""
    square: Float[Tensor, "rows"]
    """E[ReLU(u)²]"""
    own: Float[Tensor, "rows"]
    """E[t_k ReLU(u)] for the last variable"""


@cache
def _points(n_variables: int, n_points: int) -> tuple[np.ndarray, np.ndarray]:
    """The Gauss–Legendre product rule on [0, 1]^n: points [n_points^n, n], weights."""
    x, w = np.polynomial.legendre.leggauss(n_points)
    points = np.array(list(product((x + 1) / 2, repeat=n_variables))).reshape(n_points**n_variables, n_variables)
    return points, np.array([np.prod(c) for c in product(w / 2, repeat=n_variables)])


def _mixed(a: Float[Tensor, "rows k"], b: Float[Tensor, "rows"], n_differences: int) -> ReluMoments:
    """The moments with the first `n_differences` variables as differences, the last multiplied out, Gauss points between."""
    d, k = n_differences, a.shape[1]
    outer, between, own = a[:, :d], a[:, d:-1], a[:, -1]
    corners = torch.tensor(list(product((0, 1), repeat=d)), dtype=a.dtype, device=a.device).view(2**d, d)
    points, weights = _points(k - 1 - d, POINTS[min(k - 1 - d, len(POINTS) - 1)])
    signs = (-1) ** (d - corners.sum(1))
    coefficients = (signs[:, None] * torch.as_tensor(weights).to(a)).flatten()
    shifts = (outer @ corners.T)[:, :, None] + (between @ torch.as_tensor(points).to(a).T)[:, None, :]
    start = b[:, None] + shifts.flatten(1)  # u where the last variable is 0

    forward = (own >= 0)[:, None]  # where it falls, 1 − t takes its place
    slope = torch.where(own >= 0, own, -own)  # |a|, but with slope 1 at 0
    low = torch.where(forward, start, start + own[:, None])
    high = (low + slope[:, None]).clamp(min=0)
    # the share of the way on which u > 0; the rest of the formulas run over that share
    safe = torch.where(slope > 0, slope, 1)[:, None]
    share = torch.where(low >= 0, 1, high / safe)
    low = low.clamp(min=0)
    r = 1 + d
    powers, ramp, power = torch.ones_like(low), torch.ones_like(low), torch.ones_like(low)
    for i in range(1, r + 1):  # powers = Σ high^i low^(r−i), ramp = Σ (i+1) high^i low^(r−i)
        power = power * high
        powers = low * powers + power
        ramp = low * ramp + (i + 1) * power
    mean = share * powers / (r + 1)
    rising = share * ramp / ((r + 1) * (r + 2))
    rising = (1 - share) * mean + share * rising
    square = share * (low * powers + power * high) / (r + 2)

    by = outer.prod(1)

    def total(of: Tensor, divisor: float) -> Tensor:
        return (of @ coefficients) / (divisor * by)

    return ReluMoments(
        total(mean, factorial(r)),
        total(square, factorial(r + 1) / 2),
        total(torch.where(forward, rising, mean - rising), factorial(r)),
    )


def _n_differences(a: Float[Tensor, "rows k"]) -> Int[Tensor, "rows"]:
    """How many of the first k − 1 columns, sorted by falling |a|, may become differences."""
    n = a.shape[1] - 1
    if n == 0:
        return torch.zeros(len(a), dtype=torch.long, device=a.device)
    relative = a.abs()[:, :n] / a.abs().sum(1, keepdim=True)
    growth = torch.tensor([2.0 ** (d + 1) / factorial(d + 2) for d in range(1, n + 1)]).to(a)
    kept = relative.cumprod(1) * relative >= growth * torch.finfo(a.dtype).eps ** 0.375
    return kept.long().cumprod(1).sum(1)


def relu_moments(a: Float[Tensor, "rows k"], b: Float[Tensor, "rows"]) -> ReluMoments:
    """E[ReLU(u)], E[ReLU(u)²], E[t_k ReLU(u)] a row, for u = b + a·t and t uniform on [0, 1]^k, k at least 1."""
    with torch.no_grad():
        lowest, highest = b + a.clamp(max=0).sum(1), b + a.clamp(min=0).sum(1)
        positive = lowest >= 0
        mixed = ~positive & ~(highest <= 0) & ~(a.abs().sum(1) < TINY)
        order = torch.cat(
            [a[:, :-1].abs().argsort(1, descending=True), torch.full_like(b, a.shape[1] - 1).long()[:, None]], 1
        )
        n_differences = _n_differences(a.gather(1, order))
    middle = b + a.sum(1) / 2
    on = torch.where(positive, 1.0, 0.0).to(a)
    mean, square = on * middle, on * (middle.square() + a.square().sum(1) / 12)
    own = on * (middle / 2 + a[:, -1] / 12)
    for d in range(a.shape[1]):
        rows = (mixed & (n_differences == d)).nonzero().squeeze(1)
        if len(rows):
            found = _mixed(a[rows].gather(1, order[rows]), b[rows], d)
            mean, square, own = (
                whole.index_put((rows,), part) for whole, part in zip((mean, square, own), found, strict=True)
            )
    return ReluMoments(mean, square, own)
