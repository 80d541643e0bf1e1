"""What an estimate comes out as, in expectation, on a quadratic loss: exact for L = ½ Σ a_i w_i², approximate near any regular minimum.

SGLD with step ε, localisation γ, gradient noise of variance v_i a step (s²/m for minibatches of m), h_i = nβ a_i + γ:

    λ̂ = ½ Σ_i (nβ a_i / h_i) · [1 + ε (nβ)² v_i / 4] / (1 − ε h_i / 4)

so localisation shrinks (MacKay's effective parameters), the step size inflates and diverges at ε h = 4, minibatch noise inflates with
(nβ)². A chain needs 2 / (ε h_i) steps to forget (docs/reference/learning_coefficients.md §3).
"""

import torch
from jaxtyping import Float
from torch import Tensor


def predicted_llc(
    values: Float[Tensor, "case k"],
    *,
    weights: Float[Tensor, "case k"],
    nbeta: Float[Tensor, "case"],
    gamma: Float[Tensor, "case"],
    step_size: Float[Tensor, "case"],
    noise: Float[Tensor, "case k"],
) -> Float[Tensor, "case"]:
    """λ̂; infinite where a direction diverges. Negative eigenvalues count as flat.

    Args:
        values: eigenvalues a_i of the Hessian, or a quadrature's values; weights: how often each counts.
        step_size: 0 for a sampler that accepts and refuses.
        noise: variance of the gradient's error along each eigenvector.
    """
    a, eps, nb = values.clamp(min=0), step_size[:, None], nbeta[:, None]
    h = nb * a + gamma[:, None]
    share = torch.where(a > 0, nb * a / h.clamp(min=torch.finfo(h.dtype).tiny), 0)
    slack = 1 - eps * h / 4
    terms = share * (1 + eps * nb.square() * noise / 4) / slack
    found = (weights * terms).sum(1) / 2
    return torch.where((slack > 0).all(1), found, torch.inf)
