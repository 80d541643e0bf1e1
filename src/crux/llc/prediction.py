"""The expectation of an estimate on a quadratic loss: exact for L = ½ Σ a_i w_i², approximate near any regular minimum.

For SGLD with step size ε, localisation γ, gradient noise of variance v_i per step (s²/m for minibatches of m) and h_i = nβ a_i + γ:

    λ̂ = ½ Σ_i (nβ a_i / h_i) · [1 + ε (nβ)² v_i / 4] / (1 − ε h_i / 4)

Localisation lowers the estimate (as in MacKay's effective number of parameters). The step size raises it, and diverges at ε h_i = 4.
Minibatch noise raises it in proportion to (nβ)². The autocorrelation time is 2 / (ε h_i) steps. See
docs/reference/learning_coefficients.md §3.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def predict_llc(
    values: Float[Tensor, "case k"],
    *,
    weights: Float[Tensor, "case k"],
    nbeta: Float[Tensor, "case"],
    gamma: Float[Tensor, "case"],
    step_size: Float[Tensor, "case"],
    noise: Float[Tensor, "case k"],
) -> Float[Tensor, "case"]:
    """Return the expectation of λ̂, which is infinite if a direction diverges. Negative eigenvalues count as zero.

    Args:
        values: eigenvalues a_i of the Hessian, or the nodes of a quadrature over them.
        weights: number of eigenvalues that each value represents.
        step_size: ε; 0 for a Metropolis-corrected sampler.
        noise: variance v_i of a minibatch's gradient along each eigenvector.
    """
    a, eps, nb = values.clamp(min=0), step_size[:, None], nbeta[:, None]
    h = nb * a + gamma[:, None]
    share = torch.where(a > 0, nb * a / h.clamp(min=torch.finfo(h.dtype).tiny), 0)
    slack = 1 - eps * h / 4  # 0 or less: the direction diverges
    terms = share * (1 + eps * nb.square() * noise / 4) / slack
    prediction = (weights * terms).sum(1) / 2
    return torch.where((slack > 0).all(1), prediction, torch.inf)
