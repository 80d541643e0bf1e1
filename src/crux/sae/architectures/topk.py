"""TopK: keeps the k largest pre-activations of each token (Gao et al. 2406.04093, §2.3)."""

from typing import Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.active_codes import ActiveCodes, keep_active
from crux.sae.architectures.sae import SAE, BaseArguments, Codes


def keep_largest(
    pre: Float[Tensor, "tokens n_latents"], k: int, *, score: Float[Tensor, "tokens n_latents"]
) -> Float[Tensor, "tokens n_latents"]:
    """Return ReLU(pre) at the k largest scores of each token and zero elsewhere.

    Gradients flow through the kept values, not through the selection.
    """
    chosen = score.detach().topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(pre).scatter_(-1, chosen, F.relu(pre.gather(-1, chosen)))


def check_k(k: int, *, n_latents: int) -> int:
    """Return k, or raise a UserError if the dictionary has fewer latents."""
    if not 1 <= k <= n_latents:
        raise UserError(f"k must lie between 1 and the {n_latents} latents of the dictionary, not be {k}")
    return k


class TopKSAE(SAE):
    """An SAE with c = ReLU(TopK(pre)): at most k latents per token, and no penalty (Gao et al. 2406.04093, §2.3).

    Args:
        k: latents per token.
    """

    def __init__(self, *, k: int, **base: Unpack[BaseArguments]) -> None:
        super().__init__(**base)
        self.k = check_k(k, n_latents=self.n_latents)

    def encode(self, x: Float[Tensor, "tokens d_model"], side: Float[Tensor, "tokens d_out"] | None = None) -> Codes:
        pre = self.pre_activations(x)
        return Codes(keep_largest(pre, self.k, score=pre), pre)

    @torch.no_grad()
    def encode_active(self, x: Float[Tensor, "tokens d_model"]) -> ActiveCodes:
        values, latents = self.pre_activations(x).topk(self.k, dim=-1, sorted=False)
        return keep_active(latents, F.relu(values))

    def penalty(self, codes: Codes, *, weight: Float[Tensor, "tokens"] | None) -> Float[Tensor, ""]:
        """Return zero, since k fixes the sparsity."""
        return codes.c.new_zeros(())
