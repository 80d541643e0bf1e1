"""A local SAE whose last tokens look at the KL too (Karvonen 2503.17272, "a short finetune is all you need")."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from crux.sae.losses.loss import Loss
from crux.sae.losses.options import KLFinetune
from crux.sae.losses.step import TrainingStep
from crux.training import ranks


class KLFinetuneLoss(Loss[KLFinetune]):
    """MSE + λ · penalty on shuffled activations, then ½ (MSE + α · KL) + λ · penalty on token batches, α = (MSE / KL).detach().

    So the two terms weigh the same at every step, and the loss keeps its scale when the second part begins.
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
