"""The behavioural loss: the distance of a network's outputs from those of θ* (Bushnaq et al. 2405.10927).

See docs/reference/learning_coefficients.md §5.

    MSE:  L_B(θ | θ*) = (1/n) Σ_x ‖f_θ(x) − f_θ*(x)‖²
    KL:   L_B(θ | θ*) = (1/n) Σ_x KL(softmax f_θ*(x) ‖ softmax f_θ(x))

θ* is a global minimum of L_B by construction, even if training has not converged, so that its learning coefficient is defined at
every checkpoint. The residual is zero at θ*, so that the Hessian there contains no second derivatives of f: it is
(1/n) Σ_x Jᵀ B J with J = ∂f/∂θ, where B = 2I for the MSE (twice the Gauss–Newton matrix) and B = diag(p) − p pᵀ for the KL (the
Fisher matrix).
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from crux.llc.coordinates import Coordinates
from crux.llc.hessian import Product
from crux.llc.losses import Batch, ChainLoss
from crux.llc.options import Divergence

Outputs = Callable[[dict[str, Tensor], Batch], Tensor]
"""A function (parameters, batch) → f [row, sample, ..., output]; `map_over_chains` makes one from a network.

Each row is one chain of one case, and the chains of a case are adjacent.
"""


def output_distance(
    now: Float[Tensor, "*shape output"], before: Float[Tensor, "*shape output"], divergence: Divergence
) -> Float[Tensor, "*shape"]:
    """Return the distance of each sample's outputs `now` from its outputs `before`, at θ*."""
    if divergence is Divergence.mse:
        return (now - before).square().sum(-1)
    log_p = before.log_softmax(-1)
    return (log_p.exp() * (log_p - now.log_softmax(-1))).sum(-1)


def curvature_product(
    f_x: Float[Tensor, "*shape output"], v: Float[Tensor, "*shape output"], divergence: Divergence
) -> Float[Tensor, "*shape output"]:
    """Return B v, with B the second derivative of the distance with respect to the outputs f_x."""
    if divergence is Divergence.mse:
        return 2 * v
    p = f_x.softmax(-1)
    return p * (v - (p * v).sum(-1, keepdim=True))


def behavioural_loss(
    outputs: Outputs, params: Mapping[str, Float[Tensor, "case ..."]], divergence: Divergence
) -> ChainLoss:
    """Return the loss L_B of every chain relative to θ* of its case, one value per sample.

    Both networks see the same batch, so that L_B(θ*) = 0 without noise for every minibatch.

    Args:
        params: θ*, in the form that `estimate_llc` takes.
    """
    centre = {name: value.detach() for name, value in params.items()}

    def loss(p: dict[str, Tensor], batch: Batch) -> Tensor:
        now = outputs(p, batch)
        with torch.no_grad():
            n_cases = len(next(iter(centre.values())))
            n_chains = len(now) // n_cases  # of each case
            before = outputs({name: value.repeat_interleave(n_chains, 0) for name, value in centre.items()}, batch)
        return output_distance(now, before, divergence)

    return loss


def gauss_newton_product(
    outputs: Outputs, coordinates: Coordinates, w: Float[Tensor, "row n_params"], batch: Batch, divergence: Divergence
) -> Product:
    """Return v → (1/n) Σ_x Jᵀ B J v of every row, with n samples x: the product with the Hessian of L_B at θ* = w.

    J v is computed as a vjp of a vjp, because attention kernels do not support forward-mode differentiation.
    """

    def f(w: Tensor) -> Tensor:
        return outputs(coordinates.to_parameters(w), batch)

    def product(v: Float[Tensor, "row n_params"]) -> Float[Tensor, "row n_params"]:
        f_w, vjp = torch.func.vjp(f, w.detach())[:2]
        jvp = torch.func.vjp(lambda u: vjp(u)[0], torch.zeros_like(f_w))[1]  # the vjp of the linear map u → Jᵀ u
        n_samples = f_w[0, ..., 0].numel()
        return vjp(curvature_product(f_w, jvp(v)[0], divergence) / n_samples)[0].detach()

    return product
