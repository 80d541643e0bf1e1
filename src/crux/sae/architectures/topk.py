"""TopK: keeps the k largest pre-activations of each token (Gao et al. 2406.04093, §2.3)."""

from typing import Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.active_codes import find_largest, index_chosen, is_sparse
from crux.sae.architectures.codes import Codes
from crux.sae.architectures.sae import SAE, BaseArguments


def keep_largest(
    pre: Float[Tensor, "tokens n_latents"], k: int, *, score: Float[Tensor, "tokens n_latents"]
) -> Float[Tensor, "tokens n_latents"]:
    """Return ReLU(pre) at the k largest scores of each token and zero elsewhere.

    Gradients flow through the kept values, not through the selection.
    """
    chosen = find_largest(score.detach(), k)
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
        return self.select(x, pre, score=pre)

    def select(
        self,
        x: Float[Tensor, "tokens d_model"],
        pre: Float[Tensor, "tokens n_latents"],
        *,
        score: Float[Tensor, "tokens n_latents"],
        observed: Float[Tensor, ""] | None = None,
    ) -> Codes:
        """Return ReLU(pre) at the k largest scores of each token; no gradient flows through the selection."""
        if not (self.sparse and is_sparse(self.k * len(x), pre.shape)):
            return Codes(keep_largest(pre, self.k, score=score), pre, observed)
        index = index_chosen(find_largest(score.detach(), self.k), self.n_latents)
        return self.sparse_codes(x, pre, index, F.relu, observed=observed)

    def penalty(self, codes: Codes, *, weight: Float[Tensor, "tokens"] | None) -> Float[Tensor, ""]:
        """Return zero, since k fixes the sparsity."""
        return codes.pre.new_zeros(())
