"""Gated: one affine map decides which latents fire, another one how strongly (Rajamanoharan et al. 2404.16014, §3.2)."""

from typing import Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from crux.sae.architectures.active_codes import (
    ActiveCodes,
    ActiveIndex,
    decode_active,
)
from crux.sae.architectures.codes import Codes
from crux.sae.architectures.means import mean_over_tokens
from crux.sae.architectures.sae import SAE, BaseArguments


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
        if (index := self.index_if_sparse(gate.detach() > 0)) is not None:
            return self._encode_sparsely(x, u.detach(), gate.detach(), index)
        magnitude = F.relu(torch.addcmul(self.b_enc, u, self.r_mag.exp()))
        return Codes(torch.where(gate > 0, magnitude, 0.0), gate)

    def _encode_sparsely(self, x: Tensor, u: Tensor, gate: Tensor, index: ActiveIndex) -> Codes:
        """Return the codes at the places of an index, where the gate is positive."""

        def gather(places: ActiveIndex) -> tuple[Tensor, Tensor]:
            there = self.gather_active(x, u, places, b_enc=None)
            return there, there + self.b_gate.index_select(0, places.latents)

        there, active_gate = gather(index)
        b_mag, scale = (b.index_select(0, index.latents) for b in (self.b_enc, self.r_mag.exp()))
        active = ActiveCodes(index, F.relu(torch.addcmul(b_mag, there, scale)))
        return Codes(None, gate, active=active, gather=lambda places: gather(places)[1], active_pre=active_gate)

    def penalty(self, codes: Codes, *, weight: Float[Tensor, "tokens"] | None) -> Float[Tensor, ""]:
        """Return the mean over tokens of ‖ReLU(gate)‖₁ / d_model, so that λ has the same unit as for ReLU SAEs."""
        if codes.active is None:
            total = F.relu(codes.pre).sum(-1)
        else:  # the gate is positive at all active places
            assert codes.active_pre is not None
            total = codes.active.places.sum_by_token(codes.active_pre)
        return mean_over_tokens(total, weight) / self.d_model

    def auxiliary(
        self, codes: Codes, target: Float[Tensor, "tokens d_out"], *, weight: Float[Tensor, "tokens"] | None
    ) -> Float[Tensor, ""]:
        """Return the mean over tokens and dimensions of (ReLU(gate) D + b_dec − s_out · target)², with D and b_dec frozen (eq. 8)."""
        if codes.active is None:
            decoded = F.relu(codes.pre) @ self.dictionary().detach()
        else:
            assert codes.active_pre is not None
            decoded = decode_active(codes.active._replace(values=codes.active_pre), self.W_dec.detach())
        reconstruction = decoded + self.b_dec.detach()
        return mean_over_tokens((reconstruction - target * self.output_scale).square().mean(-1), weight)

    @torch.no_grad()
    def shift_pre_activations(self, by: Float[Tensor, "n_latents"]) -> None:
        super().shift_pre_activations(by * self.r_mag.exp())
        self.b_gate.add_(by)

    @torch.no_grad()
    def rescale_codes(self, factor: Float[Tensor, ""]) -> None:
        super().rescale_codes(factor)
        self.b_gate.mul_(factor)
