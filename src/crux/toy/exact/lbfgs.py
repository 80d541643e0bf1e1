"""L-BFGS for many small problems at once: one tensor program, with a separate step length, history and stopping point per instance.

Step: d = −H g by the two-loop recursion over the last `history` pairs (s, y) of each instance (Nocedal & Wright, algorithm 7.4).
Step length: the weak Wolfe conditions, met by doubling and halving (Lewis & Overton 2013), which also terminates on functions
with kinks. If the decrease of the loss is within rounding error, the slope decides instead (approximate Wolfe conditions,
Hager & Zhang 2005), so that gradients of 1e-10 can be reached. Instances that have stopped are removed from the batch.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crux.config.progress import track

DECREASE, CURVATURE = 1e-4, 0.9
"""The two constants of the Wolfe conditions, with the usual values for quasi-Newton methods."""

LOSS_PRECISION = 0.8
"""A loss is accurate to ε^LOSS_PRECISION of its value (3e-13 in float64); if two losses differ by less, their slopes are compared."""

MAX_TRIALS = 30
"""Maximum number of step lengths per line search."""

MAX_IDLE_STEPS = 10
"""Number of consecutive steps without a decrease beyond rounding error, after which an instance stops."""

InstanceLoss = Callable[[tuple[Tensor, ...], Tensor], Tensor]
"""A function (parameters, which) → losses, one per row. Row r of every parameter belongs to instance `which[r]` and affects only loss r."""


class Minimum(NamedTuple):
    """The final parameters of every instance, with the loss and the gradient there."""

    parameters: tuple[Float[Tensor, "instances ..."], ...]
    loss: Float[Tensor, "instances"]
    gradient: Float[Tensor, "instances"]
    """max |∂loss| over the parameters of the instance"""
    converged: Bool[Tensor, "instances"]
    """True if `gradient` is within the tolerance. False if the iterations ran out, if no step length decreased the loss (a kink, or
    rounding), or if the start was not finite.
    """
    iterations: Int[Tensor, "instances"]


class _LineSearch(NamedTuple):
    """The step length of every row, with the loss and the gradient there."""

    step: Tensor
    loss: Tensor
    gradient: Tensor
    succeeded: Tensor


def _line_search(
    evaluate: Callable, x: Tensor, f: Tensor, g: Tensor, d: Tensor, slope: Tensor, step: Tensor
) -> _LineSearch:
    """Find a weak Wolfe step length per row; after MAX_TRIALS trials, take the last step length that decreased the loss, if any."""
    low, high = torch.zeros_like(step), torch.full_like(step, torch.inf)
    best_step, best_f, best_g = torch.zeros_like(step), f.clone(), g.clone()
    rounding = torch.finfo(f.dtype).eps ** LOSS_PRECISION * f.abs()
    open_ = torch.arange(len(step), device=step.device)  # the rows whose search goes on
    for _ in range(MAX_TRIALS):
        t = step[open_]
        f_t, g_t = evaluate(x[open_] + t[:, None] * d[open_], open_)
        f_0, slope_0, slope_t = f[open_], slope[open_], (g_t * d[open_]).sum(1)
        decreased = f_t <= f_0 + DECREASE * t * slope_0
        decreased |= (f_t <= f_0 + rounding[open_]) & (slope_t <= (2 * DECREASE - 1) * slope_0)
        decreased &= f_t.isfinite() & g_t.isfinite().all(1)
        flat = slope_t >= CURVATURE * slope_0
        good = open_[decreased]
        best_step[good], best_f[good], best_g[good] = t[decreased], f_t[decreased], g_t[decreased]
        low[good] = t[decreased]
        high[open_[~decreased]] = t[~decreased]
        open_ = open_[~(decreased & flat)]
        if not len(open_):
            break
        bounded = high[open_].isfinite()
        step[open_] = torch.where(bounded, (low[open_] + high[open_]) / 2, 2 * low[open_])
    return _LineSearch(best_step, best_f, best_g, best_step > 0)


def _compute_direction(g: Tensor, S: Tensor, Y: Tensor, rho: Tensor, scale: Tensor) -> Tensor:
    """Return −H g. S and Y are [pairs, rows, d], the newest pair last; rows with ρ = 0 ignore the pair."""
    q, alphas = g.clone(), []
    for s, y, r in zip(S.flip(0), Y.flip(0), rho.flip(0), strict=True):
        alphas.append(r * (s * q).sum(1))
        q = q - alphas[-1][:, None] * y
    q = scale[:, None] * q
    for s, y, r, alpha in zip(S, Y, rho, reversed(alphas), strict=True):
        q = q + (alpha - r * (y * q).sum(1))[:, None] * s
    return -q


def minimise(
    loss: InstanceLoss,
    start: Sequence[Tensor],
    *,
    max_iterations: int,
    gradient_tolerance: float,
    history: int,
) -> Minimum:
    """Minimise `loss` for every instance separately, starting from `start`, whose tensors have the instances as first axis."""
    shapes = [t.shape[1:] for t in start]
    sizes = [shape.numel() for shape in shapes]
    x = torch.cat([t.detach().reshape(len(t), -1) for t in start], 1)

    def split(flat: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.view(-1, *shape) for part, shape in zip(flat.split(sizes, 1), shapes, strict=True))

    def build_evaluate(which: Tensor) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        def evaluate(point: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                point = point.detach().requires_grad_()
                value = loss(split(point), which[rows])
                (gradient,) = torch.autograd.grad(value.sum(), point)
            return value.detach(), gradient

        return evaluate

    which = torch.arange(
        len(x), device=x.device
    )  # the instances that have not stopped; the tensors below hold their rows
    f, g = build_evaluate(which)(x, which)
    final = Minimum(
        (x,), f.clone(), g.abs().amax(1), torch.zeros_like(which, dtype=torch.bool), torch.zeros_like(which)
    )
    S, Y, rho = x.new_zeros(0, *x.shape), x.new_zeros(0, *x.shape), x.new_zeros(0, len(x))
    x, scale, idle = x.clone(), torch.ones_like(f), torch.zeros_like(which)
    ended = (final.gradient <= gradient_tolerance) | ~(f.isfinite() & g.isfinite().all(1))
    for iteration in track(range(max_iterations + 1), "L-BFGS iterations, at most"):
        if ended.any():
            which, f, g, x, scale, idle = (t[~ended] for t in (which, f, g, x, scale, idle))
            S, Y, rho = S[:, ~ended], Y[:, ~ended], rho[:, ~ended]
        if not len(which) or iteration == max_iterations:
            break
        d = _compute_direction(g, S, Y, rho, scale)
        slope = (g * d).sum(1)
        uphill = ~(slope < 0) | ~d.isfinite().all(1)
        rho[:, uphill] = 0
        fresh = (rho == 0).all(0)  # without history: steepest descent, with a first step of length at most one
        d = torch.where(fresh[:, None], -g, d)
        slope = torch.where(fresh, -g.square().sum(1), slope)
        step = torch.where(fresh, (1 / g.abs().sum(1)).clamp(max=1), 1)
        search = _line_search(build_evaluate(which), x, f, g, d, slope, step)

        s, y = search.step[:, None] * d, search.gradient - g
        sy, yy = (s * y).sum(1), y.square().sum(1)
        curved = sy > torch.finfo(x.dtype).eps * s.norm(dim=1) * y.norm(dim=1)
        keep = slice(max(0, len(S) + 1 - history), None)
        S, Y = (torch.cat([old, new[None] * curved[:, None]])[keep] for old, new in ((S, s), (Y, y)))
        rho = torch.cat([rho, torch.where(curved, 1 / torch.where(curved, sy, 1), 0)[None]])[keep]
        rho[:, ~search.succeeded] = 0  # forget the history
        scale = torch.where(curved, sy / torch.where(curved, yy, 1), scale)

        gained = f - search.loss > torch.finfo(x.dtype).eps * f.abs()
        idle = torch.where(gained, 0, idle + 1)
        x, f, g = x + s, search.loss, search.gradient
        size = g.abs().amax(1)
        final.parameters[0][which] = x
        final.loss[which], final.gradient[which], final.iterations[which] = f, size, iteration + 1
        ended = (size <= gradient_tolerance) | (fresh & ~search.succeeded) | (idle >= MAX_IDLE_STEPS)
    converged = final.gradient <= gradient_tolerance
    return final._replace(parameters=split(final.parameters[0]), converged=converged)
