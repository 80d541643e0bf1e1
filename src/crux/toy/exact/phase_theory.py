"""The theoretical phase diagram of one extra feature (Elhage et al. 2209.10652, "Superposition as a phase change").

There are n = m + 1 features in m = 1 or 2 hidden dimensions. The first m have importance 1, the extra one importance r; all have
density p and magnitudes uniform on [0, 1]. The extra feature is not represented (class 0), in superposition (class 1), or has a
dedicated dimension (class 2). With weights fixed at unit norm, b = p/2 for a dropped feature and b = 0 for the others, the
losses are (docs/reference/toy_models.md §4.3)

    not represented        r (p/3 − p²/4)
    in superposition       (1 + r) p²/6, antipodal with one of the others
    dedicated dimension    p/3 − p²/4 if another feature is dropped; for m = 2 also p²/3 if the other two are antipodal

Dropping a feature is exactly optimal among solutions of its kind. Antipodal pairs, and triangles for m = 2, have a lower
loss if their weights are free. The exact boundaries are therefore the importances at which the freely optimised
superposition (L-BFGS on the exact loss) has the same loss as the alternatives.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.toy.exact.activity import enumerate_independent
from crux.toy.exact.cube_moments import relu_moments
from crux.toy.exact.lbfgs import minimise
from crux.toy.exact.loss import tied_loss

MAX_NEWTON_STEPS = 25
"""Maximum number of Newton steps; five to eight are usual."""


class Boundaries(NamedTuple):
    """The importances r between which the extra feature is in superposition, per density.

    Both are 1 at densities where it never is: the extra feature then takes the place of another one at r = 1.
    """

    lower: Float[Tensor, "densities"]
    upper: Float[Tensor, "densities"]


def dropped_loss(density: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return Var(x_i) = p/3 − p²/4: the loss of a feature of importance 1 that is dropped, with b = p/2."""
    return density / 3 - density.square() / 4


def fixed_weight_boundaries(density: Float[Tensor, "densities"], *, n_hidden: int) -> Boundaries:
    """Return the boundaries if the weights are fixed at unit norm.

    The lower one is r = 2p/(4 − 5p). The upper one is its inverse for m = 1, and r = 1 for m = 2, because the other two features then
    rather share a dimension. Both are 1 for p ≥ 4/7.
    """
    _check_n_hidden(n_hidden)
    lower = torch.where(density < 4 / 7, 2 * density / (4 - 5 * density), 1)
    return Boundaries(lower, 1 / lower if n_hidden == 1 else torch.ones_like(lower))


def classes_between_boundaries(
    relative_importance: Float[Tensor, "pixels"], boundaries: Boundaries
) -> Int[Tensor, "densities pixels"]:
    """Return the class of the extra feature for every density of the boundaries and every importance r.

    Class 0 is not represented, 1 in superposition, 2 a dedicated dimension.
    """
    lower, upper = (edge[:, None] for edge in boundaries)
    return (relative_importance > lower).long() + (relative_importance > upper).long()


def _check_n_hidden(n_hidden: int) -> None:
    if n_hidden not in (1, 2):
        raise UserError(f"n_hidden is {n_hidden}; the phase diagram of one extra feature has 1 or 2.")


def _superposition_starts(n_hidden: int) -> Float[Tensor, "starts n_hidden n_features"]:
    """Return columns with the extra feature (the last one) in superposition.

    One start has a digon (sparse features), one has two neighbouring directions (dense features: the first principal component).
    For two dimensions, both are next to a dedicated feature, and a third start is the triangle.
    """
    if n_hidden == 1:
        return torch.tensor([[[1.0, -1]], [[0.8, 0.6]]])
    angle = 2 * math.pi * torch.arange(3) / 3
    triangle = torch.stack([angle.cos(), angle.sin()])
    return torch.stack([torch.tensor([[1.0, 0, 0], [0, 1, -1]]), torch.tensor([[1.0, 0, 0], [0, 0.8, 0.6]]), triangle])


class _Branch:
    """The optima in which the extra feature is in superposition, one instance per density and start, followed as r changes."""

    def __init__(self, density: Float[Tensor, "densities"], *, n_hidden: int) -> None:
        starts = _superposition_starts(n_hidden).to(density)
        self.density = density.repeat_interleave(len(starts))
        generator = torch.Generator().manual_seed(0)
        W = starts.repeat(len(density), 1, 1)
        # an exactly symmetric start may lie on a saddle point
        self.W = W + 1e-3 * torch.randn(W.shape, generator=generator, dtype=W.dtype).to(W.device)
        self.b = density.new_zeros(len(self.W), n_hidden + 1)

    def loss_and_slope(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of the optimum at importance r and its derivative in r, which at an optimum is the error of the extra feature."""
        activity = enumerate_independent(self.density[:, None].expand(self.b.shape))

        def loss(W: Tensor, b: Tensor, r: Tensor, which: Tensor) -> Tensor:
            importance = torch.cat([torch.ones_like(b[:, 1:]), r[:, None]], 1)
            return tied_loss(
                W, b, importance=importance, activity=activity._replace(weights=activity.weights[which]), signed=False
            )

        minimum = minimise(
            lambda parameters, which: loss(parameters[0], parameters[1], r[which], which),
            (self.W, self.b),
            max_iterations=500,
            gradient_tolerance=1e-9,
            history=10,
        )
        self.W, self.b = minimum.parameters
        every = torch.arange(len(r), device=r.device)
        extra = loss(self.W, self.b, torch.ones_like(r), every) - loss(self.W, self.b, torch.zeros_like(r), every)
        return minimum.loss, extra


def smooth_onset(density: Float[Tensor, "densities"]) -> Float[Tensor, "densities"]:
    """Return the importance r above which a dropped extra feature grows from W = 0: a continuous transition, found at large p.

    Let W_e = ε W_1. The loss of the extra feature then decreases by r ε² Var(x). Feature 1, whose norm and bias adapt by η and β, costs

        ε² min_{η, β}  p E(2η t + s x_e + β)² + (1 − p) E ReLU(s x_e + β)²,   t ~ U[0, 1],  s = ±1 the sign of ε

    to second order. The result also holds for m = 2, where a second represented feature does not help.
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
    minimum = minimise(cost, (zero, zero), max_iterations=500, gradient_tolerance=1e-12, history=4)
    return minimum.loss.view(2, -1).amin(0) / dropped_loss(density)


def exact_boundaries(density: Float[Tensor, "densities"], *, n_hidden: int) -> Boundaries:
    """Return the importances r at which freely optimised superposition and its alternatives have the same loss.

    The alternative is dropping the extra feature at the lower boundary, and dedicating a dimension to it at the upper one. The loss
    of the optimum is concave in r (a minimum of functions that are linear in r). Newton's method from r = 1 therefore approaches
    either boundary from inside the superposition phase and never overshoots. At the lower boundary superposition may also begin
    continuously (`smooth_onset`); the lower of the two values is taken. The upper boundary for m = 2 is accurate to about 1e-3
    where the transition is continuous (p above 1/2).
    """
    _check_n_hidden(n_hidden)
    dropped = dropped_loss(density)

    def boundary(cost: Tensor, cost_slope: Tensor, branch: _Branch, at_one: tuple[Tensor, Tensor]) -> Tensor:
        """Return the r at which the branch has the loss cost + cost_slope · r; 1 if superposition does not win at r = 1."""
        n_starts = len(branch.W) // len(density)
        cost, cost_slope = (t.repeat_interleave(n_starts) for t in (cost, cost_slope))
        loss, slope = at_one
        r = torch.ones_like(loss)
        inside = loss < (cost + cost_slope) * (1 - 1e-7)
        for _ in range(MAX_NEWTON_STEPS):
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
    lower = torch.minimum(lower, smooth_onset(density))
    if n_hidden == 1:
        return Boundaries(lower, 1 / lower)  # the two features are interchangeable
    pair = _Branch(density, n_hidden=1)
    shared, _ = pair.loss_and_slope(torch.ones_like(pair.density))
    own = torch.minimum(dropped, shared.view(len(density), -1).amin(1))
    branch.W, branch.b = W, b
    return Boundaries(lower, boundary(own, torch.zeros_like(own), branch, at_one).amax(1))
