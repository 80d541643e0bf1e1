"""BatchTopK: keeps the k · tokens largest codes of a batch (Bussmann et al. 2412.06410)."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from crux.sae.architectures.codes import Codes
from crux.sae.architectures.jumprelu import JumpReluSAE
from crux.sae.architectures.means import update_running_mean
from crux.sae.architectures.sae import SAE, BaseArguments, convert_sae
from crux.sae.architectures.topk import check_k


def kth_largest(values: Float[Tensor, "n"], k: int) -> Float[Tensor, ""]:
    """Return the k-th largest value, with the PyTorch selection that is faster on the device."""
    if values.device.type == "cpu":  # 1024 tokens × 2048 latents, k = 32 per token, one core: 15 ms; topk takes 35
        return values.kthvalue(len(values) - k + 1).values
    return values.topk(k, sorted=False).values.min()


class BatchTopKSAE(SAE):
    """An SAE that keeps the k · tokens largest values of ReLU(pre) in a training batch (Bussmann et al. 2412.06410, §3).

        in training     c = ReLU(pre) for the k · tokens largest values of the batch, zero elsewhere
        in evaluation   c = ReLU(pre) for values above a threshold, zero elsewhere

    The threshold is the running mean of the smallest kept value (Bussmann et al., §3.2). With it, a token's codes depend only on that
    token, as in a JumpReLU SAE. All values that are equal to the smallest kept one are kept. If a batch has fewer than k · tokens positive
    values, all of them are kept, and the smallest kept value is zero. In a distributed run each process selects among its own
    tokens, and the threshold is the mean over processes.

    Args:
        k: mean number of latents per token.
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
        smallest = kth_largest(z.detach().flatten(), self.k * len(z)) if self.training else None
        kept = z.detach() > self.threshold if smallest is None else (z.detach() >= smallest) & (z.detach() > 0)
        if (index := self.index_if_sparse(kept)) is not None:
            return self.sparse_codes(x, pre, index, F.relu, observed=smallest)
        return Codes(torch.where(kept, z, 0.0), pre, smallest)

    def penalty(self, codes: Codes, *, weight: Float[Tensor, "tokens"] | None) -> Float[Tensor, ""]:
        """Return zero, since k fixes the sparsity."""
        return codes.pre.new_zeros(())

    @torch.no_grad()
    def observe(self, codes: Codes) -> None:
        assert codes.observed is not None, "the threshold is only updated in training mode"
        self.threshold.copy_(update_running_mean(self.threshold, codes.observed, n=self.observed_n, at_least=0.05))
        self.observed_n += 1

    @torch.no_grad()
    def fold(self) -> JumpReluSAE:
        """Return a JumpReLU SAE that has the running threshold for every latent."""
        folded = super().fold()
        assert isinstance(folded, BatchTopKSAE)
        sae = convert_sae(
            JumpReluSAE, folded, threshold=1.0, bandwidth=0.001
        )  # the paper's bandwidth, in case it is trained further
        sae.log_threshold.copy_(folded.threshold.log().expand(self.n_latents))
        return sae

    @torch.no_grad()
    def rescale_codes(self, factor: Float[Tensor, ""]) -> None:
        super().rescale_codes(factor)
        self.threshold.mul_(factor)
