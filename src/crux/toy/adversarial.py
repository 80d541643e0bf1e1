"""Attacks on the inputs of a tied toy model, within a given L2 distance: how much more does the loss rise where features share dimensions?

Elhage et al. 2209.10652, "Superposition and Adversarial Examples". The analytic attack on feature i moves the input along
(WᵀW)_i, all the features that overlap with it, in proportion; the worst i is taken for every sample.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from crux.subjects.superposition import SuperpositionModel, Weights


def sample_error(
    model: SuperpositionModel, seen: Float[Tensor, "stream batch n"], truth: Float[Tensor, "stream batch n"]
) -> Float[Tensor, "stream batch"]:
    """Σ_i (x_i − x'_i)² of each sample, the model seeing `seen` in place of x; models with one setting."""
    return (model(seen)[:, 0] - truth).square().sum(-1)


def directions(W: Float[Tensor, "stream m n"]) -> Float[Tensor, "stream n n"]:
    """(WᵀW)_i / ‖(WᵀW)_i‖ as row i; 0 for a feature without weights."""
    overlaps = W.mT @ W
    return overlaps / overlaps.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(W.dtype).tiny)


@torch.no_grad()
def analytic_attack(
    model: SuperpositionModel, x: Float[Tensor, "stream batch n"], *, reach: Float[Tensor, "stream"]
) -> Float[Tensor, "stream batch n"]:
    """λ (WᵀW)_i / ‖(WᵀW)_i‖ with λ = `reach`, of the i and the sign that raise the sample's error most."""
    steps = reach[:, None, None] * directions(model.W[:, 0])
    most, best = torch.full(x.shape[:2], -torch.inf).to(x), torch.zeros_like(x)
    for i in range(x.shape[-1]):
        for step in (steps[:, i, None], -steps[:, i, None]):
            found = sample_error(model, x + step, x)
            better = found > most
            best = torch.where(better[..., None], step.expand_as(x), best)
            most = torch.where(better, found, most)
    return best


def gradient_attack(
    model: SuperpositionModel,
    x: Float[Tensor, "stream batch n"],
    *,
    reach: Float[Tensor, "stream"],
    start: Float[Tensor, "stream batch n"],
    steps: int,
) -> Float[Tensor, "stream batch n"]:
    """Projected gradient ascent from `start`: every step as long as a fifth of `reach`, then back onto the ball; the best on the way."""
    reach = reach[:, None, None]
    delta, best = start.clone(), start.clone()
    most = sample_error(model, x + start, x).detach()
    for _ in range(steps):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(sample_error(model, x + delta, x).sum(), delta)
        with torch.no_grad():
            delta = delta + reach / 5 * gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            delta = delta * (reach / delta.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
            found = sample_error(model, x + delta, x)
            better = found > most
            best = torch.where(better[..., None], delta, best)
            most = torch.where(better, found, most)
    return best
