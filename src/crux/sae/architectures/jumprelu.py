"""JumpReLU: a learnt threshold a latent, trained on L0 itself (Rajamanoharan et al. 2407.14435)."""

import math
from typing import Any, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from crux.config.errors import UserError
from crux.sae.architectures.sae import SAE, BaseArguments, Codes, ParameterGroup, mean_over_tokens


def inside_kernel(
    pre: Float[Tensor, "tokens n_latents"], threshold: Float[Tensor, "n_latents"], bandwidth: Float[Tensor, ""]
) -> Bool[Tensor, "tokens n_latents"]:
    """The rectangle kernel K((pre − θ)/ε): 1 for arguments between −½ and ½."""
    return (pre - threshold).abs_() < bandwidth / 2


class JumpReLU(torch.autograd.Function):
    """pre · H(pre − θ), with ∂/∂pre = H(pre − θ) and the pseudo-derivative ∂/∂θ = −(θ/ε) K((pre − θ)/ε) (eq. 11)."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(pre, threshold, bandwidth)
        return torch.where(pre > threshold, pre, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        pre, threshold, bandwidth = ctx.saved_tensors
        to_threshold = torch.where(inside_kernel(pre, threshold, bandwidth), grad, 0.0).sum(0)
        return torch.where(pre > threshold, grad, 0.0), -threshold / bandwidth * to_threshold, None


class Heaviside(torch.autograd.Function):
    """H(pre − θ), with the pseudo-derivative ∂/∂θ = −(1/ε) K((pre − θ)/ε) and none by pre (eq. 12)."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(pre, threshold, bandwidth)
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        pre, threshold, bandwidth = ctx.saved_tensors
        return None, -torch.where(inside_kernel(pre, threshold, bandwidth), grad, 0.0).sum(0) / bandwidth, None


class JumpReluSAE(SAE):
    """c = pre · H(pre − θ), with a positive threshold θ a latent, stored as its logarithm.

    Args:
        threshold: initial θ, in units of the scaled input.
        bandwidth: ε, the width of the kernel that estimates the thresholds' gradients, in the same units.
        threshold_rate: log θ moves by that many times the optimiser's rate.
    """

    bandwidth: Float[Tensor, ""]

    def __init__(
        self, *, threshold: float, bandwidth: float, threshold_rate: float = 1.0, **base: Unpack[BaseArguments]
    ) -> None:
        super().__init__(**base)
        for name, value in (("threshold", threshold), ("bandwidth", bandwidth)):
            if not value > 0:
                raise UserError(f"JumpReLU's {name} must be positive, not {value}")
        self.log_threshold = nn.Parameter(torch.full((self.n_latents,), math.log(threshold)))
        self.register_buffer("bandwidth", torch.tensor(float(bandwidth)))
        self.threshold_rate = threshold_rate

    @property
    def threshold(self) -> Float[Tensor, "n_latents"]:
        """θ, in the codes' unit."""
        return self.log_threshold.exp()

    def encode(self, x: Float[Tensor, "tokens d_model"], side: Float[Tensor, "tokens d_out"] | None = None) -> Codes:
        pre = self.pre_activations(x)
        return Codes(JumpReLU.apply(pre, self.threshold, self.bandwidth), pre)  # pyright: ignore[reportArgumentType]

    def penalty(self, codes: Codes, *, weight: Float[Tensor, "tokens"] | None) -> Float[Tensor, ""]:
        """mean over tokens of ‖c‖₀ (eq. 9), not divided by d_model; its gradient reaches the thresholds alone."""
        fires = Heaviside.apply(codes.pre, self.threshold, self.bandwidth)
        return mean_over_tokens(fires.sum(-1), weight)  # pyright: ignore[reportOptionalMemberAccess]

    def parameter_groups(self, lr: float) -> list[ParameterGroup]:
        """log θ moves by a rate of its own, and does not decay: that would draw θ to 1."""
        rest = [parameter for parameter in self.parameters() if parameter is not self.log_threshold]
        faster: ParameterGroup = {"params": [self.log_threshold], "lr": lr * self.threshold_rate, "weight_decay": 0.0}
        return [{"params": rest}, faster]

    @torch.no_grad()
    def rescale_codes(self, factor: Float[Tensor, ""]) -> None:
        super().rescale_codes(factor)
        self.log_threshold.add_(factor.log())
        self.bandwidth.mul_(factor)
