"""AuxK: an auxiliary loss by which dead latents learn to reconstruct the residual (Gao et al. 2406.04093, appendix A.2)."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crux.sae.architectures.active_codes import ActiveCodes, decode_active, find_largest, index_chosen
from crux.sae.architectures.codes import Codes


def auxk_loss(
    codes: Codes,
    W_dec: Float[Tensor, "n_latents d_out"],
    residual: Float[Tensor, "tokens d_out"],
    *,
    dead: Bool[Tensor, "n_latents"],
    k: int,
    weight: Float[Tensor, "tokens"] | None,
    mean_over_ranks: Callable[[Tensor], Tensor],
) -> Float[Tensor, ""]:
    """Return ‖e − ê‖² / ‖e − mean e‖², where both squared norms are averaged over tokens.

    e = x − x̂ is the residual, and ê = z D its reconstruction. D has the unit-norm decoder directions, and z holds the k largest
    pre-activations among the dead latents (all of them if there are fewer than k). The result has no unit, as in the authors' code:
    it is 1 − the share of the residual's variance that the dead latents explain. It is zero if no latent is dead or the residual has
    no variance. Gradients flow to the pre-activations and to D, but not through e or the denominator to the live latents.

    Args:
        codes: the output of the encoder.
        W_dec: decoder directions of all latents, one per row, of any norm.
        residual: x − x̂, in the units in which D reconstructs x.
        dead: True for the latents that AuxK trains.
        k: number of dead latents that reconstruct the residual of a token; at most n_latents.
        weight: 1 for a token that counts, 0 for a token that is left out; None: all count.
        mean_over_ranks: returns the mean of a value over the processes that share the batch, so that the variance is that of the
            whole batch.
    """
    e = residual.detach()
    # no ReLU on z: the dead latents of a ReLU SAE have only negative pre-activations and would get no gradient through it
    index = index_chosen(find_largest(codes.pre.detach().masked_fill(~dead, -torch.inf), k), len(W_dec))
    z = torch.where(dead[index.latents], codes.pre_at(index), 0.0)
    e_hat = decode_active(ActiveCodes(index, z), W_dec)
    token_weight = torch.full_like(e[:, 0], 1 / len(e)) if weight is None else weight / weight.sum()
    variance = mean_over_ranks(token_weight @ (e - mean_over_ranks(token_weight @ e)).square().sum(-1))
    # not averaged over ranks: through that mean no gradient would flow, and DDP averages the gradients of the ranks
    error = token_weight @ (e - e_hat).square().sum(-1)
    # if all residuals are equal, rounding leaves a tiny variance, which must not be divided by
    usable = dead.any() & (variance > 1e-10 * mean_over_ranks(token_weight @ e.square().sum(-1)))
    return torch.where(usable, error / torch.where(usable, variance, 1.0), 0.0)
