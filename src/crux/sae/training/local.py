"""SAE_local: reconstructs the activation (Braun et al. 2405.12241, §2.1). Only the subject's prefix runs."""

from collections.abc import Sequence
from typing import Unpack

from jaxtyping import Float
from torch import Tensor

from crux.sae.architectures.site import Site
from crux.sae.training.recipe import Common
from crux.sae.training.sae_module import SAEModule
from crux.training.data import Activations


class LocalSAE(SAEModule):
    """reconstruction · MSE(x̂, x) + λ · penalty, on shuffled activations."""

    def __init__(self, sites: Sequence[Site], *, reconstruction: float, **common: Unpack[Common]) -> None:
        super().__init__(sites, **common)
        self.reconstruction = reconstruction

    def training_step(self, batch: Activations, batch_idx: int) -> Float[Tensor, ""]:
        return self.local_loss(batch, reconstruction=self.reconstruction)
