"""g-SAE: a TopK SAE whose selection also uses the gradient of the network's loss (Olmo et al. 2411.10397)."""

from typing import ClassVar, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.codes import Codes
from crux.sae.architectures.means import update_running_mean
from crux.sae.architectures.sae import BaseArguments, convert_sae
from crux.sae.architectures.topk import TopKSAE

MIN_EFFECT = 1e-30
"""A smaller mean effect counts as zero: then the selection is that of TopK. β divided by this value is still finite."""


class GradientTopKSAE(TopKSAE):
    """A TopK SAE that selects latents by a gradient-weighted score (Olmo et al. 2411.10397).

        c = ReLU(pre) at the k largest scores of a token, zero elsewhere
        score = pre · (1 + β · a / m),    a = |g D|,    g = ∂(loss)/∂(activation that the SAE writes)

    a is the first-order effect on the loss of one unit of a latent. m is the running mean of a over tokens and latents, so that
    β does not depend on the scale of the loss; in the first batch it is the mean of that batch, in each process. No gradient
    flows through a or the selection. Since g needs the next token, the folded SAE is a plain TopK SAE, as is `encode`
    without a gradient.

    Args:
        k: latents per token.
        beta: weight of the effect in the score; 0 gives TopK.
    """

    RUNNING_MEANS: ClassVar[tuple[str, ...]] = ("effect",)

    effect: Float[Tensor, ""]
    observed_n: Int[Tensor, ""]

    def __init__(self, *, k: int, beta: float, **base: Unpack[BaseArguments]) -> None:
        super().__init__(k=k, **base)
        if not beta >= 0:
            raise UserError(f"beta must not be negative, as {beta} is")
        self.beta = beta
        self.register_buffer("effect", torch.zeros(()))
        self.register_buffer("observed_n", torch.zeros((), dtype=torch.long))

    def encode(self, x: Float[Tensor, "tokens d_model"], side: Float[Tensor, "tokens d_out"] | None = None) -> Codes:
        if side is None:
            return super().encode(x)
        pre = self.pre_activations(x)
        with torch.no_grad():
            a = (side.to(pre.dtype) @ self.dictionary().T).abs_()
            observed = a.mean()
            m = torch.where(self.observed_n > 0, self.effect, observed)
            # a negative score belongs to a negative pre-activation, whose code is zero: ReLU may follow the selection
            score = a.mul_(torch.where(m > MIN_EFFECT, self.beta / m, 0.0)).add_(1).mul_(pre)
        return self.select(x, pre, score=score, observed=observed)

    @torch.no_grad()
    def observe(self, codes: Codes) -> None:
        if codes.observed is not None:
            self.effect.copy_(update_running_mean(self.effect, codes.observed, n=self.observed_n, at_least=0.01))
            self.observed_n += 1

    @torch.no_grad()
    def fold(self) -> TopKSAE:
        return convert_sae(TopKSAE, super().fold(), k=self.k)
