"""A local SAE whose last tokens look at the KL too (Karvonen 2503.17272, "a short finetune is all you need")."""

import torch
from jaxtyping import Float
from torch import Tensor

from crux.sae.training.end_to_end import EndToEndSAE
from crux.training import ranks
from crux.training.data import Activations


class KLFinetunedSAE(EndToEndSAE):
    """MSE + λ · penalty on shuffled activations, then ½ (MSE + α · KL) + λ · penalty on token batches, α = (MSE / KL).detach().

    So the two terms weigh the same at every step, and the loss keeps its scale where the second part begins.
    """

    def training_step(self, batch: Activations | Tensor, batch_idx: int) -> Float[Tensor, ""]:
        if isinstance(batch, Activations):
            return self.local_loss(batch, reconstruction=self.coefficients.reconstruction)
        step = self.step(batch, errors=True)
        error, kl = self.coefficients.reconstruction * self.by_run(step.terms["mse"]), self.by_run(step.terms["kl"])
        whole_error, whole_kl = ranks.mean(torch.stack([error, kl]).detach())
        alpha = whole_error / whole_kl.clamp_min(torch.finfo(kl.dtype).tiny)
        return self.finished(0.5 * (error + alpha * kl), step)
