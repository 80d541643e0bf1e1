"""The behavioural loss: how far a network's outputs are from those of θ* (Bushnaq et al. 2405.10927).

See docs/reference/learning_coefficients.md §5.

    MSE:  L_B(θ | θ*) = (1/n) Σ_x ‖f_θ(x) − f_θ*(x)‖²
    KL:   L_B(θ | θ*) = (1/n) Σ_x KL(softmax f_θ*(x) ‖ softmax f_θ(x))

θ* is a global minimum of it by construction, converged or not, so that a learning coefficient is defined at any checkpoint. Its
Hessian at θ* is (1/n) Σ_x Jᵀ B J with J = ∂f/∂θ: no residual, so no second derivatives of f. B is 2·1 for the MSE (twice the
Gauss–Newton matrix) and diag(p) − p pᵀ for the KL (Fisher).
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from crux.llc.coordinates import Coordinates
from crux.llc.hessian import Product
from crux.llc.losses import Batch, Loss
from crux.llc.options import Divergence

Outputs = Callable[[dict[str, Tensor], Batch], Tensor]
"""(parameters, batch) → f [row, sample, ..., output]: rows as in losses.py. One network's becomes one by `over_chains`."""


def distance(
    now: Float[Tensor, "*shape output"], before: Float[Tensor, "*shape output"], divergence: Divergence
) -> Float[Tensor, "*shape"]:
    """Return the distance of each sample's outputs from what they were at θ*."""
    if divergence is Divergence.mse:
        return (now - before).square().sum(-1)
    log_p = before.log_softmax(-1)
    return (log_p.exp() * (log_p - now.log_softmax(-1))).sum(-1)


def curvature_product(
    at: Float[Tensor, "*shape output"], v: Float[Tensor, "*shape output"], divergence: Divergence
) -> Float[Tensor, "*shape output"]:
    """Return B v, B being the distance's second derivative with respect to the outputs."""
    if divergence is Divergence.mse:
        return 2 * v
    p = at.softmax(-1)
    return p * (v - (p * v).sum(-1, keepdim=True))


def behavioural_loss(outputs: Outputs, params: Mapping[str, Float[Tensor, "case ..."]], divergence: Divergence) -> Loss:
    """Return L_B of every chain against θ* of its case, one value per sample. Both see the same batch: no noise without a move.

    Args:
        params: θ*, as `estimate_llc` takes it.
    """
    centre = {name: value.detach() for name, value in params.items()}

    def loss(p: dict[str, Tensor], batch: Batch) -> Tensor:
        now = outputs(p, batch)
        with torch.no_grad():
            repeat = len(now) // len(next(iter(centre.values())))
            before = outputs({name: value.repeat_interleave(repeat, 0) for name, value in centre.items()}, batch)
        return distance(now, before, divergence)

    return loss


def gauss_newton_product(
    outputs: Outputs, at: Coordinates, w: Float[Tensor, "row n"], batch: Batch, divergence: Divergence
) -> Product:
    """Return v → (1/n) Σ_x Jᵀ B J v at w, of every row: one product forward through f, one back; the Hessian of L_B at θ* = w.

    Forward first through the transposed product (a vjp of a vjp), which attention's kernels allow where they have no forward mode.
    """

    def f(w: Tensor) -> Tensor:
        return outputs(at.named(w), batch)

    def product(v: Float[Tensor, "row n"]) -> Float[Tensor, "row n"]:
        found, back = torch.func.vjp(f, w.detach())[:2]
        transposed = torch.func.vjp(lambda u: back(u)[0], torch.zeros_like(found))[1]
        samples = found[0, ..., 0].numel()
        return back(curvature_product(found, transposed(v)[0], divergence) / samples)[0].detach()

    return product
