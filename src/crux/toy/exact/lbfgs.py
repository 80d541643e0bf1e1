"""L-BFGS for many small problems at once: one program, an own step length, history and end for every instance.

Step: d = −H g by the two-loop recursion over the last `history` pairs (s, y) of each instance (Nocedal & Wright, algorithm 7.4).
Step length: weak Wolfe by doubling and halving (Lewis & Overton 2013), which ends on functions with kinks too. Where the
decrease drowns in rounding, the slope decides in its place (Hager & Zhang 2005, approximate Wolfe), so that gradients of
1e-10 can be reached. An instance that has ended is taken out of the batch and never touched again.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crux.config.progress import track

DECREASE, CURVATURE = 1e-4, 0.9
"""The Wolfe conditions' two constants, the usual ones of quasi-Newton methods."""

NOISE = 0.8
"""A loss is known to ε^0.8 of itself (3e-13 in float64): smaller differences are left to the slope."""

TRIALS = 30
"""Step lengths tried a search."""

PATIENCE = 10
"""Steps in a row without a decrease beyond rounding, after which an instance ends."""

Loss = Callable[[tuple[Tensor, ...], Tensor], Tensor]
"""(parameters, which) → a loss a row: row r of every parameter belongs to instance `which[r]`, and no row to another's loss."""


class Minimum(NamedTuple):
    """Where every instance ended."""

    parameters: tuple[Float[Tensor, "instances ..."], ...]
    loss: Float[Tensor, "instances"]
    gradient: Float[Tensor, "instances"]
    """max |∂loss| over the instance's parameters"""
    converged: Bool[Tensor, "instances"]
    """`gradient` is within the tolerance. False: out of iterations, no step length helped (a kink, rounding), not finite at first."""
    iterations: Int[Tensor, "instances"]


class _Search(NamedTuple):
    step: Tensor
    loss: Tensor
    gradient: Tensor
    found: Tensor


def _search(evaluate: Callable, x: Tensor, f: Tensor, g: Tensor, d: Tensor, slope: Tensor, step: Tensor) -> _Search:
    """A weak Wolfe step length a row; where TRIALS run out, the last that decreased the loss, if any."""
    low, high = torch.zeros_like(step), torch.full_like(step, torch.inf)
    best_step, best_f, best_g = torch.zeros_like(step), f.clone(), g.clone()
    rounding = torch.finfo(f.dtype).eps ** NOISE * f.abs()
    open_ = torch.arange(len(step), device=step.device)
    for _ in range(TRIALS):
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
    return _Search(best_step, best_f, best_g, best_step > 0)


def _direction(g: Tensor, S: Tensor, Y: Tensor, rho: Tensor, scale: Tensor) -> Tensor:
    """−H g; S and Y are [pairs, rows, d], newest last; a pair with ρ = 0 says nothing about its row."""
    q, alphas = g.clone(), []
    for s, y, r in zip(S.flip(0), Y.flip(0), rho.flip(0), strict=True):
        alphas.append(r * (s * q).sum(1))
        q = q - alphas[-1][:, None] * y
    q = scale[:, None] * q
    for s, y, r, alpha in zip(S, Y, rho, reversed(alphas), strict=True):
        q = q + (alpha - r * (y * q).sum(1))[:, None] * s
    return -q


def minimise(
    loss: Loss,
    start: Sequence[Tensor],
    *,
    max_iterations: int,
    gradient_tolerance: float,
    history: int,
) -> Minimum:
    """Minimise `loss` for every instance from its own start: tensors with the instances as first axis."""
    shapes = [t.shape[1:] for t in start]
    sizes = [shape.numel() for shape in shapes]
    x = torch.cat([t.detach().reshape(len(t), -1) for t in start], 1)

    def split(flat: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.view(-1, *shape) for part, shape in zip(flat.split(sizes, 1), shapes, strict=True))

    def evaluate_of(which: Tensor) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        def evaluate(at: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                at = at.detach().requires_grad_()
                value = loss(split(at), which[rows])
                (gradient,) = torch.autograd.grad(value.sum(), at)
            return value.detach(), gradient

        return evaluate

    which = torch.arange(len(x), device=x.device)  # the instances still under way; every tensor below has their rows
    f, g = evaluate_of(which)(x, which)
    final = Minimum(
        (x,), f.clone(), g.abs().amax(1), torch.zeros_like(which, dtype=torch.bool), torch.zeros_like(which)
    )
    S, Y, rho = x.new_zeros(0, *x.shape), x.new_zeros(0, *x.shape), x.new_zeros(0, len(x))
    x, scale, idle = x.clone(), torch.ones_like(f), torch.zeros_like(which)
    ended = (final.gradient <= gradient_tolerance) | ~(f.isfinite() & g.isfinite().all(1))
    for iteration in track(range(max_iterations + 1), "minimising, at most"):
        if ended.any():
            which, f, g, x, scale, idle = (t[~ended] for t in (which, f, g, x, scale, idle))
            S, Y, rho = S[:, ~ended], Y[:, ~ended], rho[:, ~ended]
        if not len(which) or iteration == max_iterations:
            break
        d = _direction(g, S, Y, rho, scale)
        slope = (g * d).sum(1)
        astray = ~(slope < 0) | ~d.isfinite().all(1)
        rho[:, astray] = 0
        fresh = (rho == 0).all(0)  # no history: the steepest descent, at first by a length of one at most
        d = torch.where(fresh[:, None], -g, d)
        slope = torch.where(fresh, -g.square().sum(1), slope)
        step = torch.where(fresh, (1 / g.abs().sum(1)).clamp(max=1), 1)
        found = _search(evaluate_of(which), x, f, g, d, slope, step)

        s, y = found.step[:, None] * d, found.gradient - g
        sy, yy = (s * y).sum(1), y.square().sum(1)
        curved = sy > torch.finfo(x.dtype).eps * s.norm(dim=1) * y.norm(dim=1)
        keep = slice(max(0, len(S) + 1 - history), None)
        S, Y = (torch.cat([old, new[None] * curved[:, None]])[keep] for old, new in ((S, s), (Y, y)))
        rho = torch.cat([rho, torch.where(curved, 1 / torch.where(curved, sy, 1), 0)[None]])[keep]
        rho[:, ~found.found] = 0  # start afresh
        scale = torch.where(curved, sy / torch.where(curved, yy, 1), scale)

        gained = f - found.loss > torch.finfo(x.dtype).eps * f.abs()
        idle = torch.where(gained, 0, idle + 1)
        x, f, g = x + s, found.loss, found.gradient
        size = g.abs().amax(1)
        final.parameters[0][which] = x
        final.loss[which], final.gradient[which], final.iterations[which] = f, size, iteration + 1
        ended = (size <= gradient_tolerance) | (fresh & ~found.found) | (idle >= PATIENCE)
    converged = final.gradient <= gradient_tolerance
    return final._replace(parameters=split(final.parameters[0]), converged=converged)
