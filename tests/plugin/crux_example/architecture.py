"""The architecture of the example plug-in."""

from typing import Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from crux.sae.architectures.codes import Codes
from crux.sae.architectures.relu import ReluSAE
from crux.sae.architectures.sae import SAE, BaseArguments, convert_sae


class SoftThresholdSAE(ReluSAE):
    """A ReLU SAE with the same threshold for every latent: c = ReLU(pre − margin)."""

    def __init__(self, *, margin: float, **base: Unpack[BaseArguments]) -> None:
        super().__init__(**base)
        self.margin = margin

    def encode(self, x: Float[Tensor, "tokens d_model"], side: Tensor | None = None) -> Codes:
        pre = self.pre_activations(x) - self.margin
        return Codes(F.relu(pre), pre)

    @torch.no_grad()
    def fold(self) -> SAE:
        """Return a ReLU SAE that computes the same function, with the margin subtracted from its encoder bias."""
        sae = convert_sae(ReluSAE, self)
        sae.b_enc.sub_(self.margin)
        return sae.fold()
