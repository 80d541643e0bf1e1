"""KL fine-tuning: a local loss that also uses the KL at the end of training (Karvonen 2503.17272)."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from crux.sae.losses.loss import Loss
from crux.sae.losses.options import KLFinetune
from crux.sae.losses.step import TrainingStep
from crux.training import ranks


class KLFinetuneLoss(Loss[KLFinetune]):
    """The loss of KL fine-tuning (Karvonen 2503.17272).

        first, on shuffled activations   MSE + λ · penalty
        then, on token batches           ½ (MSE + α · KL) + λ · penalty,   α = (MSE / KL).detach()

    MSE and KL have the same weight at every step, and the scale of the loss does not change when the fine-tuning begins.
    """

    term_labels: ClassVar = {"kl": "KL (nats/token)", "mse": "MSE"}
    needs_spliced_pass = True

    def __call__(self, step: TrainingStep) -> Float[Tensor, "runs"]:
        if step.forward.spliced is None:
            return self.options.reconstruction * step.mse() + step.sparsity()
        kl, mse = step.kl(), self.options.reconstruction * step.mse()
        return 0.5 * (mse + kl_weight(mse, kl) * kl) + step.sparsity()


@torch.no_grad()
def kl_weight(mse: Float[Tensor, "runs"], kl: Float[Tensor, "runs"]) -> Float[Tensor, "runs"]:
    """Return α = MSE / KL of the whole batch, over all ranks."""
    mse, kl = ranks.mean_over_ranks(torch.stack([mse, kl]))
    return mse / kl.clamp_min(torch.finfo(kl.dtype).tiny)
