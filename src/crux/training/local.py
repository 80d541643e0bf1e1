"""SAE_local: reconstructs the activation (Braun et al. 2405.12241, §2.1). Only the subject's prefix runs."""

from jaxtyping import Float
from torch import Tensor

from crux.losses.mse import mse
from crux.saes.sae import SAE
from crux.training.sae_module import Recipe, SAEModule


class LocalSAE(SAEModule):
    """reconstruction · MSE(x̂, x) + λ · penalty, on shuffled activations.

    With normalised activations the MSE is that of the normalised ones, so that λ means the same whatever their scale.
    """

    def __init__(
        self, sae: SAE, *, recipe: Recipe, sparsity: float, reconstruction: float, max_norm: float | None
    ) -> None:
        super().__init__(sae, recipe=recipe, sparsity=sparsity, max_norm=max_norm)
        self.reconstruction = reconstruction

    def training_step(self, batch: Float[Tensor, "tokens d"], batch_idx: int) -> Float[Tensor, ""]:
        x = batch.to(self.sae.W_enc.dtype)
        weight = self.tokens_in_loss(x, None)
        codes = self.sae.encode(x)
        error = mse(self.sae.decode(codes), x, weight=weight) * self.sae.input_scale**2
        penalty = self.sae.penalty(codes, weight=weight)
        loss = self.reconstruction * error + self.sparsity * penalty + self.sae.auxiliary(x, codes)
        return self.told(loss, codes, {"mse": error, "sparsity": penalty})
