"""Matryoshka: a BatchTopK SAE with nested dictionaries (Bussmann et al. 2503.17547)."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Unpack

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.active_codes import ActiveCodes, decode_active
from crux.sae.architectures.batch_topk import BatchTopKSAE
from crux.sae.architectures.codes import Codes
from crux.sae.architectures.means import mean_over_tokens
from crux.sae.architectures.sae import BaseArguments


class MatryoshkaSAE(BatchTopKSAE):
    """A BatchTopK SAE in which each prefix of the latents must also reconstruct by itself (Bussmann et al. 2503.17547, §3).

        loss + prefix_coefficient · Σ over prefixes of MSE(reconstruction by the prefix, target)

    Args:
        k: mean number of latents per token, over the whole dictionary.
        prefixes: sizes of the prefixes as shares of the dictionary, increasing, between 0 and 1; without the whole dictionary.
        prefix_coefficient: coefficient of each prefix's MSE; 1 in the paper.
    """

    def __init__(
        self, *, k: int, prefixes: Sequence[float], prefix_coefficient: float, **base: Unpack[BaseArguments]
    ) -> None:
        super().__init__(k=k, **base)
        ends = [0, *(round(share * self.n_latents) for share in prefixes), self.n_latents]
        self.sizes = [end - start for start, end in pairwise(ends)]
        if not prefixes or min(self.sizes) < 1:
            raise UserError(
                f"prefixes must be increasing shares of the {self.n_latents} latents, each at least one latent larger than the one "
                f"before and smaller than the dictionary, not {list(prefixes)}"
            )
        if prefix_coefficient < 0:
            raise UserError(f"prefix_coefficient must not be negative, but is {prefix_coefficient}")
        self.prefix_coefficient = prefix_coefficient

    def auxiliary(
        self, codes: Codes, target: Float[Tensor, "tokens d_out"], *, weight: Float[Tensor, "tokens"] | None
    ) -> Float[Tensor, ""]:
        """Return prefix_coefficient · Σ over prefixes of the mean over tokens and dimensions of (s_out · (x̂_prefix − target))².

        Each group of latents between two prefixes is decoded once and added to the reconstruction by the smaller prefix.
        """
        error = self.b_dec - target * self.output_scale
        total = target.new_zeros(())
        ends = list(accumulate(self.sizes))
        for start, end in pairwise(
            [0, *ends[:-1]]
        ):  # the last group completes the dictionary, which the loss itself covers
            error = error + self._decode_group(codes, start, end)
            total = total + mean_over_tokens(error.square().mean(-1), weight)
        return self.prefix_coefficient * total

    def _decode_group(self, codes: Codes, start: int, end: int) -> Float[Tensor, "tokens d_out"]:
        """Return the sum over the latents `start` to `end` − 1 of code · direction."""
        if codes.active is None:
            return codes.c[:, start:end] @ F.normalize(self.W_dec[start:end], dim=-1)
        index, values = codes.active
        kept = (index.latents >= start) & (index.latents < end)
        return decode_active(ActiveCodes(index.select(kept), values[kept]), self.W_dec)
