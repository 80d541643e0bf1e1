"""JumpReLU: one learnt threshold per latent, trained with an L0 penalty (Rajamanoharan et al. 2407.14435)."""

import math
from typing import Any, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from crux.config.errors import UserError
from crux.sae.architectures.codes import Codes
from crux.sae.architectures.means import mean_over_tokens
from crux.sae.architectures.sae import SAE, BaseArguments, ParameterGroup


def inside_kernel(
    pre: Float[Tensor, "*places"], threshold: Float[Tensor, "*latents"], bandwidth: Float[Tensor, ""]
) -> Bool[Tensor, "*places"]:
    """Return the rectangle kernel K((pre − θ)/ε), which is 1 (true) for arguments between −½ and ½."""
    return (pre - threshold).abs_() < bandwidth / 2


class JumpReLU(torch.autograd.Function):
    """The function pre · H(pre − θ), with ∂/∂pre = H(pre − θ) and the pseudo-derivative ∂/∂θ = −(θ/ε) K((pre − θ)/ε) (eq. 11)."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(pre, threshold, bandwidth)
        return torch.where(pre > threshold, pre, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        pre, threshold, bandwidth = ctx.saved_tensors
        to_threshold = torch.where(inside_kernel(pre, threshold, bandwidth), grad, 0.0).sum_to_size(threshold.shape)
        return torch.where(pre > threshold, grad, 0.0), -threshold / bandwidth * to_threshold, None


class Heaviside(torch.autograd.Function):
    """The step function H(pre − θ), with the pseudo-derivative ∂/∂θ = −(1/ε) K((pre − θ)/ε) and ∂/∂pre = 0 (eq. 12)."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(pre, threshold, bandwidth)
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        pre, threshold, bandwidth = ctx.saved_tensors
        to_threshold = torch.where(inside_kernel(pre, threshold, bandwidth), grad, 0.0).sum_to_size(threshold.shape)
        return None, -to_threshold / bandwidth, None


class JumpReluSAE(SAE):
    """An SAE with c = pre · H(pre − θ) and an L0 penalty (Rajamanoharan et al. 2407.14435, §3).

    Each latent has a positive threshold θ, whose logarithm is stored.

    Args:
        threshold: initial θ, in units of the scaled input.
        bandwidth: ε, the width of the kernel that estimates the gradients of the thresholds, in the same units.
        threshold_rate: learning rate of log θ, as a multiple of the optimiser's learning rate.
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
        """The thresholds θ, in the unit of the codes."""
        return self.log_threshold.exp()

    def encode(self, x: Float[Tensor, "tokens d_model"], side: Float[Tensor, "tokens d_out"] | None = None) -> Codes:
        pre = self.pre_activations(x)
        if (index := self.index_if_sparse(self._may_fire(pre.detach()))) is not None:
            threshold = self.threshold.index_select(0, index.latents)
            return self.sparse_codes(x, pre, index, lambda z: JumpReLU.apply(z, threshold, self.bandwidth))  # pyright: ignore[reportArgumentType]
        return Codes(JumpReLU.apply(pre, self.threshold, self.bandwidth), pre)  # pyright: ignore[reportArgumentType]

    def penalty(self, codes: Codes, *, weight: Float[Tensor, "tokens"] | None) -> Float[Tensor, ""]:
        """Return the mean over tokens of ‖c‖₀ (eq. 9), not divided by d_model. Only the thresholds receive its gradient."""
        if codes.active is None:
            l0 = Heaviside.apply(codes.pre, self.threshold, self.bandwidth).sum(-1)  # pyright: ignore[reportOptionalMemberAccess]
        else:
            index, pre = codes.active.places, codes.active_pre
            threshold = self.threshold.index_select(0, index.latents)
            l0 = index.sum_by_token(Heaviside.apply(pre, threshold, self.bandwidth))  # pyright: ignore[reportArgumentType]
        return mean_over_tokens(l0, weight)

    def _may_fire(self, pre: Float[Tensor, "tokens n_latents"]) -> Bool[Tensor, "tokens n_latents"]:
        """Return where a latent fires or, if thresholds get a gradient, is so near its own that it has a pseudo-derivative."""
        threshold = self.threshold.detach()
        fires = pre > threshold
        with_gradient = torch.is_grad_enabled() and self.log_threshold.requires_grad
        return fires | inside_kernel(pre, threshold, self.bandwidth) if with_gradient else fires

    def parameter_groups(self, lr: float) -> list[ParameterGroup]:
        """Return log θ as a separate group with its own learning rate and no weight decay, which would pull θ towards 1."""
        others = [parameter for parameter in self.parameters() if parameter is not self.log_threshold]
        thresholds: ParameterGroup = {
            "params": [self.log_threshold],
            "lr": lr * self.threshold_rate,
            "weight_decay": 0.0,
        }
        return [{"params": others}, thresholds]

    @torch.no_grad()
    def rescale_codes(self, factor: Float[Tensor, ""]) -> None:
        super().rescale_codes(factor)
        self.log_threshold.add_(factor.log())
        self.bandwidth.mul_(factor)
