"""The paper's SAE: untied, ReLU, L1 (Braun et al. 2405.12241, §2 and the authors' `sparsifiers.py`)."""

import copy
import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from crux.saes.sae import SAE, Codes

Init = Literal["paper", "tied"]


class ReluSAE(SAE):
    """c = ReLU(W_encᵀ s·x + b_enc): no decoder bias is subtracted from the input.

    Args:
        init: `paper`: encoder and its bias U(±1/√d_model), decoder orthogonal (a tight frame), decoder bias U(±1/√n_latents),
            encoder and decoder independent; half of all latents fire at first. `tied`: encoder = decoder transposed, random
            directions of norm `init_norm`, biases zero (Conerly et al., "Update on how we train SAEs", 2024).
        init_norm: norm of each encoder direction under `tied`.
        generator: source of the initial weights.
    """

    def __init__(
        self, *, d_model: int, n_latents: int, init: Init, init_norm: float, generator: torch.Generator
    ) -> None:
        super().__init__(d_model=d_model, n_latents=n_latents)
        match init:
            case "paper":
                for parameter in (self.W_enc, self.b_enc):
                    nn.init.uniform_(parameter, -1 / math.sqrt(d_model), 1 / math.sqrt(d_model), generator=generator)
                nn.init.orthogonal_(self.W_dec, generator=generator)
                nn.init.uniform_(self.b_dec, -1 / math.sqrt(n_latents), 1 / math.sqrt(n_latents), generator=generator)
            case "tied":
                directions = F.normalize(torch.randn(n_latents, d_model, generator=generator), dim=-1)
                with torch.no_grad():
                    self.W_dec.copy_(init_norm * directions)
                    self.W_enc.copy_(init_norm * directions.T)
                nn.init.zeros_(self.b_enc)
                nn.init.zeros_(self.b_dec)

    def encode(self, x: Float[Tensor, "tokens d_model"], side: Tensor | None = None) -> Codes:
        return Codes(F.relu(F.linear(x * self.input_scale, self.W_enc.T, self.b_enc)))

    def penalty(self, codes: Codes, *, weight: Float[Tensor, "tokens"] | None) -> Float[Tensor, ""]:
        """mean over tokens of ‖c‖₁ / d_model: the paper's φ/λ (§2.1, with the 1/d_model of the authors' code)."""
        l1 = codes.c.sum(-1)  # codes are not negative
        mean = l1.mean() if weight is None else (l1 * weight).sum() / weight.sum()
        return mean / self.d_model

    @torch.no_grad()
    def folded(self) -> "ReluSAE":
        """ReLU is positively homogeneous, so c/s = ReLU(W_encᵀ x + b_enc/s): only the biases take the scale in."""
        sae = copy.deepcopy(self)
        sae.W_dec.copy_(self.dictionary())
        sae.b_enc.div_(self.input_scale)
        sae.b_dec.div_(self.input_scale)
        sae.input_scale.fill_(1.0)
        return sae
