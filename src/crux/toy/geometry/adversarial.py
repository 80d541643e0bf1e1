"""Attacks on the inputs of a tied toy model, within a given L2 distance: how much more does the loss rise where features share dimensions?

Elhage et al. 2209.10652, "Superposition and Adversarial Examples". The analytic attack on feature i moves the input along
(WᵀW)_i, all the features that overlap with it, in proportion; of all i the one that harms most is taken. An attack is `shared`,
one perturbation for all of a stream's inputs [stream, 1, n], or each input has its own [stream, batch, n].
"""

import torch
from jaxtyping import Float
from torch import Tensor

from crux.toy.superposition import SuperpositionModel

STEP = 0.2
"""Length of a step of gradient ascent, of the distance allowed."""


def rise(
    model: SuperpositionModel, x: Float[Tensor, "stream batch n"], delta: Float[Tensor, "stream attacks n"]
) -> Float[Tensor, "stream attacks"]:
    """The error Σ_i (x_i − x'_i)² with x + δ in place of x, less that with x; a shared attack's is the mean over inputs."""

    def error(seen: Tensor) -> Tensor:
        return (model(seen)[:, 0] - x).square().sum(-1)

    more = error(x + delta) - error(x).detach()
    return more.mean(1, keepdim=True) if delta.shape[1] == 1 else more


def directions(W: Float[Tensor, "stream m n"]) -> Float[Tensor, "stream n n"]:
    """(WᵀW)_i / ‖(WᵀW)_i‖ as row i; 0 for a feature without weights."""
    overlaps = W.mT @ W
    return overlaps / overlaps.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(W.dtype).tiny)


@torch.no_grad()
def analytic_attack(
    model: SuperpositionModel, x: Float[Tensor, "stream batch n"], *, reach: Float[Tensor, "stream"], shared: bool
) -> Float[Tensor, "stream attacks n"]:
    """± λ (WᵀW)_i / ‖(WᵀW)_i‖ with λ = `reach`, of the i and the sign that raise the error most."""
    along = reach[:, None, None] * directions(model.W[:, 0])
    best = torch.zeros_like(x[:, :1] if shared else x)
    most = torch.zeros(best.shape[:2]).to(x)
    for i in range(x.shape[-1]):
        for step in (along[:, i, None], -along[:, i, None]):
            best, most = _better(best, most, step.expand_as(best), rise(model, x, step.expand_as(best)))
    return best


def gradient_attack(
    model: SuperpositionModel,
    x: Float[Tensor, "stream batch n"],
    *,
    reach: Float[Tensor, "stream"],
    start: Float[Tensor, "stream attacks n"],
    steps: int,
) -> Float[Tensor, "stream attacks n"]:
    """Projected gradient ascent on the error from `start`, shared or not as that is; the best on the way."""
    ball = reach[:, None, None]
    delta, best = start.clone(), start.clone()
    most = rise(model, x, start).detach()
    for _ in range(steps):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(rise(model, x, delta).sum(), delta)
        with torch.no_grad():
            delta = delta + STEP * ball * gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            delta = delta * (ball / delta.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
            best, most = _better(best, most, delta, rise(model, x, delta))
    return best


def _better(best: Tensor, most: Tensor, other: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Of two attacks the one whose rise is larger, and that."""
    return torch.where((found > most)[..., None], other, best), torch.maximum(found, most)
