"""Attack the inputs of a tied toy model within a given L2 distance, to measure how vulnerable superposition makes it.

Elhage et al. 2209.10652, "Superposition and Adversarial Examples". The analytic attack on feature i moves the input along
(WᵀW)_i, that is along all features that overlap with i, in proportion to the overlap. Of all i the most harmful is taken. An
attack is either `shared`, one perturbation for all inputs of a stream [stream, 1, n], or differs per input [stream, batch, n].
"""

import torch
from jaxtyping import Float
from torch import Tensor

from crux.toy.superposition import SuperpositionModel

RELATIVE_STEP = 0.2
"""Length of a gradient-ascent step, as a share of the allowed distance."""


def error_increase(
    model: SuperpositionModel, x: Float[Tensor, "stream batch n"], delta: Float[Tensor, "stream attacks n"]
) -> Float[Tensor, "stream attacks"]:
    """Return the increase of Σ_i (x_i − x'_i)² when the model reads x + δ instead of x; for a shared attack, the mean over inputs."""

    def error(inputs: Tensor) -> Tensor:
        return (model(inputs)[:, 0] - x).square().sum(-1)

    increase = error(x + delta) - error(x).detach()
    return increase.mean(1, keepdim=True) if delta.shape[1] == 1 else increase


def overlap_directions(W: Float[Tensor, "stream m n"]) -> Float[Tensor, "stream n n"]:
    """Return the unit vectors (WᵀW)_i / ‖(WᵀW)_i‖, one per row; 0 for a feature without weights."""
    overlaps = W.mT @ W
    return overlaps / overlaps.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(W.dtype).tiny)


@torch.no_grad()
def analytic_attack(
    model: SuperpositionModel, x: Float[Tensor, "stream batch n"], *, reach: Float[Tensor, "stream"], shared: bool
) -> Float[Tensor, "stream attacks n"]:
    """Return ±λ (WᵀW)_i / ‖(WᵀW)_i‖ with λ = `reach`, for the i and the sign that increase the error most."""
    steps = reach[:, None, None] * overlap_directions(model.W[:, 0])
    best = torch.zeros_like(x[:, :1] if shared else x)  # no attack, which increases the error by 0
    most = torch.zeros(best.shape[:2]).to(x)  # the increase of the error under `best`
    for i in range(x.shape[-1]):
        for step in (steps[:, i, None], -steps[:, i, None]):
            best, most = _keep_stronger(
                best, most, step.expand_as(best), error_increase(model, x, step.expand_as(best))
            )
    return best


def gradient_attack(
    model: SuperpositionModel,
    x: Float[Tensor, "stream batch n"],
    *,
    reach: Float[Tensor, "stream"],
    start: Float[Tensor, "stream attacks n"],
    steps: int,
) -> Float[Tensor, "stream attacks n"]:
    """Maximise the error by projected gradient ascent from `start`; return the strongest perturbation on the path.

    The attack is shared if `start` is.
    """
    ball = reach[:, None, None]
    delta, best = start.clone(), start.clone()
    most = error_increase(model, x, start).detach()
    for _ in range(steps):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(error_increase(model, x, delta).sum(), delta)
        with torch.no_grad():
            delta = delta + RELATIVE_STEP * ball * gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            delta = delta * (ball / delta.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
            best, most = _keep_stronger(best, most, delta, error_increase(model, x, delta))
    return best


def _keep_stronger(best: Tensor, most: Tensor, other: Tensor, increase: Tensor) -> tuple[Tensor, Tensor]:
    """Return the attack with the larger increase of the error, and that increase."""
    return torch.where((increase > most)[..., None], other, best), torch.maximum(increase, most)
