"""Gated: one affine map decides which latents fire, another one how strongly (Rajamanoharan et al. 2404.16014, §3.2)."""

from typing import Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from crux.sae.architectures.sae import SAE, BaseArguments, Codes, mean_over_tokens


class GatedSAE(SAE):
    """An SAE with c = 1[gate > 0] · ReLU(magnitude) (Rajamanoharan et al. 2404.16014, §3.2).

        gate = u + b_gate,    magnitude = exp(r_mag) · u + b_mag,    u = s·x W_enc  (or (s·x − b_dec) W_enc)

    b_mag is stored as `b_enc`, and `Codes.pre` is the gate. No gradient flows through the indicator function: the penalty and
    the auxiliary term train the gate.
    """

    def __init__(self, **base: Unpack[BaseArguments]) -> None:
        super().__init__(**base)
        self.r_mag = nn.Parameter(torch.zeros(self.n_latents))
        self.b_gate = nn.Parameter(self.b_enc.detach().clone())  # gate and magnitude agree at first

    def encode(self, x: Float[Tensor, "tokens d_model"], side: Float[Tensor, "tokens d_out"] | None = None) -> Codes:
        u = F.linear(x * self.input_scale, self.W_enc.T, -self.b_dec @ self.W_enc if self.subtract_b_dec else None)
        gate = u + self.b_gate
        magnitude = F.relu(torch.addcmul(self.b_enc, u, self.r_mag.exp()))
        return Codes(torch.where(gate > 0, magnitude, 0.0), gate)

    def penalty(self, codes: Codes, *, weight: Float[Tensor, "tokens"] | None) -> Float[Tensor, ""]:
        """Return the mean over tokens of ‖ReLU(gate)‖₁ / d_model, so that λ has the same unit as for ReLU SAEs."""
        return mean_over_tokens(F.relu(codes.pre).sum(-1), weight) / self.d_model

    def auxiliary(
        self, codes: Codes, target: Float[Tensor, "tokens d_out"], *, weight: Float[Tensor, "tokens"] | None
    ) -> Float[Tensor, ""]:
        """Return the mean over tokens and dimensions of (ReLU(gate) D + b_dec − s_out · target)², with D and b_dec frozen (eq. 8)."""
        reconstruction = F.relu(codes.pre) @ self.dictionary().detach() + self.b_dec.detach()
        return mean_over_tokens((reconstruction - target * self.output_scale).square().mean(-1), weight)

    @torch.no_grad()
    def shift_pre_activations(self, by: Float[Tensor, "n_latents"]) -> None:
        super().shift_pre_activations(by * self.r_mag.exp())
        self.b_gate.add_(by)

    @torch.no_grad()
    def rescale_codes(self, factor: Float[Tensor, ""]) -> None:
        super().rescale_codes(factor)
        self.b_gate.mul_(factor)
