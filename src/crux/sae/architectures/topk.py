"""TopK: the k largest pre-activations of each token (Gao et al. 2406.04093, §2.3)."""

from typing import Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.sae import SAE, BaseArguments, Codes


def keep_largest(
    pre: Float[Tensor, "tokens n_latents"], k: int, *, score: Float[Tensor, "tokens n_latents"]
) -> Float[Tensor, "tokens n_latents"]:
    """ReLU(pre) at the k largest scores of each token, zero elsewhere; the choice has no gradient, the kept values have."""
    chosen = score.detach().topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(pre).scatter_(-1, chosen, F.relu(pre.gather(-1, chosen)))


def check_k(k: int, *, n_latents: int) -> int:
    """k as given, or UserError where the dictionary cannot have it."""
    if not 1 <= k <= n_latents:
        raise UserError(f"k must lie between 1 and the {n_latents} latents of the dictionary, not be {k}")
    return k


class TopKSAE(SAE):
    """c = ReLU(the k largest of pre, zero elsewhere): at most k latents a token, without a penalty.

    Args:
        k: latents a token.
    """

    def __init__(self, *, k: int, **base: Unpack[BaseArguments]) -> None:
        super().__init__(**base)
        self.k = check_k(k, n_latents=self.n_latents)

    def encode(self, x: Float[Tensor, "tokens d_model"], side: Float[Tensor, "tokens d_out"] | None = None) -> Codes:
        pre = self.pre_activations(x)
        return Codes(keep_largest(pre, self.k, score=pre), pre)

    def penalty(self, codes: Codes, *, weight: Float[Tensor, "tokens"] | None) -> Float[Tensor, ""]:
        """Zero: k fixes the sparsity."""
        return codes.c.new_zeros(())
