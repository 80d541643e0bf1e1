"""BatchTopK: the k · tokens largest codes of a batch (Bussmann et al. 2412.06410)."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from crux.sae.architectures.jumprelu import JumpReluSAE
from crux.sae.architectures.sae import SAE, BaseArguments, Codes, convert_sae, update_running_mean
from crux.sae.architectures.topk import check_k


def kth_largest(values: Float[Tensor, "n"], k: int) -> Float[Tensor, ""]:
    """The k-th largest value, by whichever of PyTorch's selections is fast on the device."""
    if values.device.type == "cpu":  # 1024 tokens × 2048 latents, k = 32 a token, one core: 15 ms against topk's 35
        return values.kthvalue(len(values) - k + 1).values
    return values.topk(k, sorted=False).values.min()


class BatchTopKSAE(SAE):
    """In training, ReLU(pre) where it is among the k · tokens largest of the batch; afterwards where it exceeds a threshold.

    The threshold is the running mean of the smallest kept value (Bussmann et al. 2412.06410, §3.2): with it a token's codes are
    a function of that token alone, JumpReLU. Values equal to the smallest kept one are all kept; where a batch has fewer than k · tokens
    positive values all of these are kept, and what is observed is zero. Of several ranks each chooses among its own tokens, and the
    threshold is the mean over them.

    Args:
        k: mean latents a token.
    """

    BATCH_WIDE: ClassVar[bool] = True
    RUNNING_MEANS: ClassVar[tuple[str, ...]] = ("threshold",)

    threshold: Float[Tensor, ""]
    observed_n: Int[Tensor, ""]

    def __init__(self, *, k: int, **base: Unpack[BaseArguments]) -> None:
        super().__init__(**base)
        self.k = check_k(k, n_latents=self.n_latents)
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("observed_n", torch.zeros((), dtype=torch.long))

    def encode(self, x: Float[Tensor, "tokens d_model"], side: Float[Tensor, "tokens d_out"] | None = None) -> Codes:
        pre = self.pre_activations(x)
        z = F.relu(pre)
        if not self.training:
            return Codes(torch.where(z > self.threshold, z, 0.0), pre)
        smallest = kth_largest(z.detach().flatten(), self.k * len(z))
        return Codes(torch.where(z >= smallest, z, 0.0), pre, smallest)

    def penalty(self, codes: Codes, *, weight: Float[Tensor, "tokens"] | None) -> Float[Tensor, ""]:
        """Zero: k fixes the sparsity."""
        return codes.c.new_zeros(())

    @torch.no_grad()
    def observe(self, codes: Codes) -> None:
        assert codes.observed is not None, "a threshold is learnt in training mode alone"
        self.threshold.copy_(update_running_mean(self.threshold, codes.observed, n=self.observed_n, at_least=0.05))
        self.observed_n += 1

    @torch.no_grad()
    def fold(self) -> JumpReluSAE:
        """A JumpReLU with the running threshold for every latent."""
        folded = super().fold()
        assert isinstance(folded, BatchTopKSAE)
        sae = convert_sae(JumpReluSAE, folded, threshold=1.0, bandwidth=0.001)  # for training on: the paper's
        sae.log_threshold.copy_(folded.threshold.log().expand(self.n_latents))
        return sae

    @torch.no_grad()
    def rescale_codes(self, factor: Float[Tensor, ""]) -> None:
        super().rescale_codes(factor)
        self.threshold.mul_(factor)
