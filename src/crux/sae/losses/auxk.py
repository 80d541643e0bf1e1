"""AuxK: dead latents learn to reconstruct what the others leave over (Gao et al. 2406.04093, appendix A.2)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def auxk_loss(
    pre: Float[Tensor, "tokens n_latents"],
    dictionary: Float[Tensor, "n_latents d_out"],
    residual: Float[Tensor, "tokens d_out"],
    *,
    dead: Bool[Tensor, "n_latents"],
    k: int,
    weight: Float[Tensor, "tokens"] | None,
    mean_over_ranks: Callable[[Tensor], Tensor],
) -> Float[Tensor, ""]:
    """‖e − ê‖² / ‖e − mean e‖², both means over tokens: e the residual x − x̂, ê = z D, z the k largest `pre` of dead latents.

    Without a unit, as in the authors' code: 1 − the share of the residual's variance that the dead latents explain. Fewer than
    k dead latents: all of them. Zero without dead latents or without variance. `weight` (0 or 1 a token) leaves tokens out.
    `together` takes a mean over these tokens to the mean over the batch that they are a share of: the variance is the batch's.

    Its gradient reaches `pre` and `dictionary`, and not the live latents through e (detached) or the denominator.
    """
    e = residual.detach()
    # no ReLU on z: a ReLU SAE's dead latents have negative pre-activations everywhere, and would get no gradient through it
    chosen = pre.detach().masked_fill(~dead, -torch.inf).topk(k, dim=-1, sorted=False).indices
    z = torch.where(dead[chosen], pre.gather(-1, chosen), 0.0)
    e_hat = F.embedding_bag(
        chosen, dictionary, per_sample_weights=z.to(dictionary.dtype), mode="sum"
    )  # k rows of D a token, not all of them
    share = torch.full_like(e[:, 0], 1 / len(e)) if weight is None else weight / weight.sum()
    variance = mean_over_ranks(share @ (e - mean_over_ranks(share @ e)).square().sum(-1))
    error = share @ (e - e_hat).square().sum(-1)
    # of equal residuals rounding leaves some variance, by which nothing may be divided
    usable = dead.any() & (variance > 1e-10 * mean_over_ranks(share @ e.square().sum(-1)))
    return torch.where(usable, error / torch.where(usable, variance, 1.0), 0.0)
