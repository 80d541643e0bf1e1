"""Compute moments of a ReLU over the unit cube: E[ReLU(u)], E[ReLU(u)²] and E[t_k ReLU(u)] for u = b + a·t, t uniform on [0, 1]^k.

The mean of a derivative over one variable t_i is a difference quotient,

    ∫₀¹ f'(c + a_i t) dt = (f(c + a_i) − f(c)) / a_i .

Applied to d variables, this gives a signed sum over 2^d corners, with f = 2 u₊^(d+2) / (d+2)! for the second moment. The sum
is exact, but cancellation costs about 2^(d+1) / (d+2)! / Π|a_i / R| units in the last place, where R = Σ|a_i|, and a further
factor 1/|a_i / R| in the gradient. The variables are therefore treated in three ways:

- The last variable is integrated in closed form, written as a sum of powers. Nothing cancels, whatever its a.
- Of the other variables, those with the largest |a_i| become difference quotients: as many as keep the rounding error of the
  gradient below ε^(-3/8) units (1e-10 in float64).
- The remaining variables have small |a_i| and are integrated by Gauss–Legendre quadrature. Their integrand is smooth except
  for kinks of order d + 2, which are crossed on a short interval. The largest error that was measured is 1e-11 R².

If u has the same sign on the whole cube, the moments are polynomials or zero. All results are differentiable, with finite
values and gradients at a = 0.
"""

from functools import cache
from itertools import product
from math import factorial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

N_GAUSS_POINTS = (1, 8, 8, 6, 5, 4, 3)
"""Gauss–Legendre points per variable, indexed by the number of variables that are integrated this way; 3 for more variables."""

TINY = 1e-30
"""Rows with R below this value and a change of sign get zero moments; the moments are at most R²."""


class ReluMoments(NamedTuple):
    """Moments of ReLU(u), u = b + a·t, over the unit cube; one per row."""

    mean: Float[Tensor, "rows"]
    """E[ReLU(u)]"""
    square: Float[Tensor, "rows"]
    """E[ReLU(u)²]"""
    cross: Float[Tensor, "rows"]
    """E[t_k ReLU(u)], with t_k the last variable"""


@cache
def _gauss_points(n_variables: int, n_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points [n_points^n, n] and weights of the Gauss–Legendre product rule on [0, 1]^n."""
    x, w = np.polynomial.legendre.leggauss(n_points)
    points = np.array(list(product((x + 1) / 2, repeat=n_variables))).reshape(n_points**n_variables, n_variables)
    return points, np.array([np.prod(c) for c in product(w / 2, repeat=n_variables)])


def _integrate(a: Float[Tensor, "rows k"], b: Float[Tensor, "rows"], n_differences: int) -> ReluMoments:
    """Return the moments.

    The first `n_differences` variables become difference quotients, the last is integrated in closed form, the others by quadrature.
    """
    d, k = n_differences, a.shape[1]
    outer, between, last = a[:, :d], a[:, d:-1], a[:, -1]
    corners = torch.tensor(list(product((0, 1), repeat=d)), dtype=a.dtype, device=a.device).view(2**d, d)
    points, weights = _gauss_points(k - 1 - d, N_GAUSS_POINTS[min(k - 1 - d, len(N_GAUSS_POINTS) - 1)])
    signs = (-1) ** (d - corners.sum(1))
    coefficients = (signs[:, None] * torch.as_tensor(weights).to(a)).flatten()
    shifts = (outer @ corners.T)[:, :, None] + (between @ torch.as_tensor(points).to(a).T)[:, None, :]
    start = b[:, None] + shifts.flatten(1)  # u where the last variable is 0

    forward = (last >= 0)[:, None]  # where u decreases with t, substitute 1 − t
    slope = torch.where(last >= 0, last, -last)  # |a|, but with derivative 1 at 0
    low = torch.where(forward, start, start + last[:, None])
    high = (low + slope[:, None]).clamp(min=0)
    # the share of [0, 1] on which u > 0; the formulas below integrate over that share
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

    denominators = outer.prod(1)

    def sum_corners(values: Tensor, divisor: float) -> Tensor:
        return (values @ coefficients) / (divisor * denominators)

    return ReluMoments(
        sum_corners(mean, factorial(r)),
        sum_corners(square, factorial(r + 1) / 2),
        sum_corners(torch.where(forward, rising, mean - rising), factorial(r)),
    )


def _count_differences(a: Float[Tensor, "rows k"]) -> Int[Tensor, "rows"]:
    """Return, per row, how many of the first k − 1 columns become difference quotients; the columns are sorted by decreasing |a|."""
    n = a.shape[1] - 1
    if n == 0:
        return torch.zeros(len(a), dtype=torch.long, device=a.device)
    relative = a.abs()[:, :n] / a.abs().sum(1, keepdim=True)
    growth = torch.tensor([2.0 ** (d + 1) / factorial(d + 2) for d in range(1, n + 1)]).to(a)
    accurate = relative.cumprod(1) * relative >= growth * torch.finfo(a.dtype).eps ** 0.375
    return accurate.long().cumprod(1).sum(1)


def relu_moments(a: Float[Tensor, "rows k"], b: Float[Tensor, "rows"]) -> ReluMoments:
    """Return E[ReLU(u)], E[ReLU(u)²] and E[t_k ReLU(u)] per row, for u = b + a·t and t uniform on [0, 1]^k, k ≥ 1."""
    with torch.no_grad():
        lowest, highest = b + a.clamp(max=0).sum(1), b + a.clamp(min=0).sum(1)
        positive = lowest >= 0
        mixed = ~positive & ~(highest <= 0) & ~(a.abs().sum(1) < TINY)
        order = torch.cat(
            [a[:, :-1].abs().argsort(1, descending=True), torch.full_like(b, a.shape[1] - 1).long()[:, None]], 1
        )
        n_differences = _count_differences(a.gather(1, order))
    middle = b + a.sum(1) / 2
    on = torch.where(positive, 1.0, 0.0).to(a)
    mean, square = on * middle, on * (middle.square() + a.square().sum(1) / 12)
    cross = on * (middle / 2 + a[:, -1] / 12)
    for d in range(a.shape[1]):
        rows = (mixed & (n_differences == d)).nonzero().squeeze(1)
        if len(rows):
            moments = _integrate(a[rows].gather(1, order[rows]), b[rows], d)
            mean, square, cross = (
                every.index_put((rows,), some) for every, some in zip((mean, square, cross), moments, strict=True)
            )
    return ReluMoments(mean, square, cross)
