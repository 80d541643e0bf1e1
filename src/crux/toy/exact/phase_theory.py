"""The phase diagram of one extra feature (Elhage et al., "Superposition as a phase change"): what it is given, in theory.

n = m + 1 features for m = 1 or 2 hidden dimensions; the first m have importance 1, the extra one r; all have density p, magnitudes U[0, 1].
The extra feature is not represented (class 0), in superposition (1), or has a dimension of its own (2). Losses, with weights
fixed at unit norm and b = 0 but for a dropped feature's b = p/2 (docs/reference/toy_models.md §4.3), are

    not represented        r (p/3 − p²/4)
    in superposition       (1 + r) p²/6, antipodal with one of the others
    own dimension          p/3 − p²/4, another one dropped; for m = 2 also p²/3, the other two antipodal

The first line and dropping another are exact optima of their kind; antipodal pairs, and for m = 2 triangles, do better with
their weights free. The exact boundaries are where the free optimum of superposition, from `lbfgs` on the exact loss, meets the rest.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.toy.exact.activity import independent
from crux.toy.exact.cube_moments import relu_moments
from crux.toy.exact.lbfgs import minimise
from crux.toy.exact.loss import tied_loss

STEPS = 25
"""Newton steps at most; five to eight are taken."""


class Boundaries(NamedTuple):
    """Between which r the extra feature is in superposition; both 1 at densities where it never is: the features swap there."""

    lower: Float[Tensor, "densities"]
    upper: Float[Tensor, "densities"]


def dropped_loss(density: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Var(x_i) = p/3 − p²/4: what a feature of importance 1 loses if dropped with b = p/2."""
    return density / 3 - density.square() / 4


def fixed_weight_boundaries(density: Float[Tensor, "densities"], *, n_hidden: int) -> Boundaries:
    """r = 2p/(4 − 5p) and, for m = 1, its inverse; for m = 2, r = 1: the others would rather share. All 1 from p = 4/7 on."""
    _check(n_hidden)
    lower = torch.where(density < 4 / 7, 2 * density / (4 - 5 * density), 1)
    return Boundaries(lower, 1 / lower if n_hidden == 1 else torch.ones_like(lower))


def extra_feature_class(
    relative_importance: Float[Tensor, "pixels"], boundaries: Boundaries
) -> Int[Tensor, "densities pixels"]:
    """0 not represented, 1 in superposition, 2 own dimension, for every density of the boundaries and every r."""
    lower, upper = (edge[:, None] for edge in boundaries)
    return (relative_importance > lower).long() + (relative_importance > upper).long()


def _check(n_hidden: int) -> None:
    if n_hidden not in (1, 2):
        raise UserError(f"n_hidden is {n_hidden}; the phase diagram of one extra feature has 1 or 2.")


def _superposed(n_hidden: int) -> Float[Tensor, "starts n_hidden n_features"]:
    """Columns with the extra feature, the last, in superposition.

    Digon (sparse), side by side (dense: the first principal component); for two dimensions one of these beside a
    dedicated feature, and the triangle.
    """
    if n_hidden == 1:
        return torch.tensor([[[1.0, -1]], [[0.8, 0.6]]])
    angle = 2 * math.pi * torch.arange(3) / 3
    triangle = torch.stack([angle.cos(), angle.sin()])
    return torch.stack([torch.tensor([[1.0, 0, 0], [0, 1, -1]]), torch.tensor([[1.0, 0, 0], [0, 0.8, 0.6]]), triangle])


class _Branch:
    """Optima in superposition, one instance for every density and start, followed as r moves."""

    def __init__(self, density: Float[Tensor, "densities"], *, n_hidden: int) -> None:
        starts = _superposed(n_hidden).to(density)
        self.density = density.repeat_interleave(len(starts))
        generator = torch.Generator().manual_seed(0)
        W = starts.repeat(len(density), 1, 1)
        # off the saddle that an exactly symmetric start may lie on
        self.W = W + 1e-3 * torch.randn(W.shape, generator=generator, dtype=W.dtype).to(W.device)
        self.b = density.new_zeros(len(self.W), n_hidden + 1)

    def loss_and_slope(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """The optimum's loss at importance r and its derivative in r: at an optimum, the extra feature's own error."""
        activity = independent(self.density[:, None].expand(self.b.shape))

        def loss(W: Tensor, b: Tensor, r: Tensor, which: Tensor) -> Tensor:
            importance = torch.cat([torch.ones_like(b[:, 1:]), r[:, None]], 1)
            return tied_loss(
                W, b, importance=importance, activity=activity._replace(weights=activity.weights[which]), signed=False
            )

        found = minimise(
            lambda parameters, which: loss(parameters[0], parameters[1], r[which], which),
            (self.W, self.b),
            max_iterations=500,
            gradient_tolerance=1e-9,
            history=10,
        )
        self.W, self.b = found.parameters
        every = torch.arange(len(r), device=r.device)
        extra = loss(self.W, self.b, torch.ones_like(r), every) - loss(self.W, self.b, torch.zeros_like(r), every)
        return found.loss, extra


def leaving_zero(density: Float[Tensor, "densities"]) -> Float[Tensor, "densities"]:
    """The r above which a dropped extra feature grows from W = 0: a smooth transition, the one met at large p.

    With W_e = ε W_1 the feature's own loss falls by r ε² Var(x); feature 1, whose norm and bias yield by η and β, pays

        ε² min_{η, β}  p E(2η t + s x_e + β)² + (1 − p) E ReLU(s x_e + β)²,   t ~ U[0, 1],  s = ±1 the sign of ε

    to second order. The same for m = 2, where a second kept feature does not help.
    """
    p, sign = density.repeat(2), torch.tensor([1.0, -1.0]).to(density).repeat_interleave(len(density))

    def cost(parameters: tuple[Tensor, ...], which: Tensor) -> Tensor:
        eta, beta = parameters
        q, s = p[which], sign[which]
        # moments of s x_e, and of y = 2η t + β
        mean, square = s * q / 2, q / 3
        y_mean, y_square = eta + beta, 4 * eta.square() / 3 + 2 * eta * beta + beta.square()
        active = y_square + 2 * y_mean * mean + square
        silent = (1 - q) * beta.relu().square() + q * relu_moments(s[:, None], beta).square
        return q * active + (1 - q) * silent

    zero = torch.zeros_like(p)
    found = minimise(cost, (zero, zero), max_iterations=500, gradient_tolerance=1e-12, history=4)
    return found.loss.view(2, -1).amin(0) / dropped_loss(density)


def exact_boundaries(density: Float[Tensor, "densities"], *, n_hidden: int) -> Boundaries:
    """Where the freely optimised superposition loses as much as not representing the feature, or as its own dimension.

    The optimum's loss is concave in r (a minimum of functions linear in r), so Newton's steps from r = 1 come to either
    boundary from inside superposition and never step over it. At the lower one superposition may also begin smoothly
    (`leaving_zero`); the lower of the two counts. The upper one for m = 2 is good to about 1e-3 where it is smooth (p above ½).
    """
    _check(n_hidden)
    dropped = dropped_loss(density)

    def boundary(cost: Tensor, cost_slope: Tensor, branch: _Branch, at_one: tuple[Tensor, Tensor]) -> Tensor:
        """The r at which the branch loses cost + cost_slope · r; 1 where superposition does not win at r = 1."""
        n_starts = len(branch.W) // len(density)
        cost, cost_slope = (t.repeat_interleave(n_starts) for t in (cost, cost_slope))
        loss, slope = at_one
        r = torch.ones_like(loss)
        inside = loss < (cost + cost_slope) * (1 - 1e-7)
        for _ in range(STEPS):
            step = torch.where(inside, (loss - cost - cost_slope * r) / (slope - cost_slope), 0)
            r = r - step
            if (step.abs() <= 1e-7 * r).all():
                break
            loss, slope = branch.loss_and_slope(r)
        return r.view(-1, n_starts)

    branch = _Branch(density, n_hidden=n_hidden)
    at_one = branch.loss_and_slope(torch.ones_like(branch.density))
    W, b = branch.W, branch.b
    lower = boundary(torch.zeros_like(dropped), dropped, branch, at_one).amin(1)
    lower = torch.minimum(lower, leaving_zero(density))
    if n_hidden == 1:
        return Boundaries(lower, 1 / lower)  # the two features are alike
    pair = _Branch(density, n_hidden=1)
    shared, _ = pair.loss_and_slope(torch.ones_like(pair.density))
    own = torch.minimum(dropped, shared.view(len(density), -1).amin(1))
    branch.W, branch.b = W, b
    return Boundaries(lower, boundary(own, torch.zeros_like(own), branch, at_one).amax(1))
