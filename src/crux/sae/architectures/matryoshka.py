"""Matryoshka: BatchTopK whose first latents reconstruct by themselves (Bussmann et al. 2503.17547)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Unpack

from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.batch_topk import BatchTopKSAE
from crux.sae.architectures.sae import BaseArguments, Codes, mean_over_tokens


class MatryoshkaSAE(BatchTopKSAE):
    """BatchTopK with nested dictionaries: every prefix of the latents gives a reconstruction of its own.

    (Bussmann et al. 2503.17547, §3)

    Args:
        k: mean latents a token, over the whole dictionary.
        prefixes: their shares of the dictionary, increasing, between 0 and 1; the whole is not listed.
        prefix_coefficient: what each prefix's MSE is multiplied with; the paper's sum has 1.
    """

    def __init__(
        self, *, k: int, prefixes: Sequence[float], prefix_coefficient: float, **base: Unpack[BaseArguments]
    ) -> None:
        super().__init__(k=k, **base)
        ends = [0, *(round(share * self.n_latents) for share in prefixes), self.n_latents]
        self.sizes = [end - start for start, end in pairwise(ends)]
        if not prefixes or min(self.sizes) < 1:
            raise UserError(
                f"prefixes must be increasing shares of the {self.n_latents} latents, each at least a latent more than the one "
                f"before and less than all, not {list(prefixes)}"
            )
        if prefix_coefficient < 0:
            raise UserError(f"prefix_coefficient must not be negative, as {prefix_coefficient} is")
        self.prefix_coefficient = prefix_coefficient

    def auxiliary(
        self, codes: Codes, target: Float[Tensor, "tokens d_out"], *, weight: Float[Tensor, "tokens"] | None
    ) -> Float[Tensor, ""]:
        """prefix_coefficient · Σ over the prefixes of the mean over tokens and dimensions of (s_out · (x̂_prefix − target))².

        Each group of latents is decoded once and added to the prefix before it.
        """
        error = self.b_dec - target * self.output_scale
        total = target.new_zeros(())
        groups = zip(codes.c.split(self.sizes, -1), self.dictionary().split(self.sizes), strict=True)
        for c, directions in list(groups)[:-1]:  # the last one completes the dictionary: the loss itself has it
            error = error + c @ directions
            total = total + mean_over_tokens(error.square().mean(-1), weight)
        return self.prefix_coefficient * total
