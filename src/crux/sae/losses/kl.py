"""KL(clean ‖ spliced) of the next-token distributions: the end-to-end loss (Braun et al. 2405.12241, §2.2).

    KL_t = Σ_v p_tv (log p_tv − log q_tv),   p = softmax(clean logits), q = softmax(spliced logits),   in nats

Averaged over all T positions. The direction is the paper's and the code's; the docstring of the authors' code states the other one.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crux.sae.losses.readout import hidden_gradient, logits, token_chunks


def token_kl(log_p: Float[Tensor, "chunk d_vocab"], log_q: Float[Tensor, "chunk d_vocab"]) -> Float[Tensor, "chunk"]:
    """KL(p ‖ q) a token, in nats, from log-probabilities."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


class _MeanKL(torch.autograd.Function):
    """The weighted means, with each chunk's gradient formed beside its loss: 1 + 2K products with W_U a chunk, no recompute.

    With u the raw spliced logits and z their capped values, ∂KL_t/∂u = (q − p) · ∂z/∂u and ∂z/∂u = 1 − (z/s)².
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        h_spliced: Tensor,
        h_clean: Tensor,
        W_U: Tensor,
        b_U: Tensor | None,
        softcap: float | None,
        weight: Tensor | None,
    ) -> Tensor:
        n_passes, n_tokens, _ = h_spliced.shape
        share = torch.full((), 1 / n_tokens, device=h_spliced.device) if weight is None else weight / weight.sum()
        totals = torch.zeros(n_passes, device=h_spliced.device)
        gradient = torch.empty_like(h_spliced) if ctx.needs_input_grad[0] else None
        for part in token_chunks(n_tokens, W_U.shape[0], h_spliced.device):
            log_p = logits(h_clean[part], W_U, b_U=b_U, softcap=softcap).log_softmax(-1)
            p = log_p.exp()
            share_part = share if weight is None else share[part]
            for i in range(n_passes):  # one pass's logits alive at a time
                z = logits(h_spliced[i, part], W_U, b_U=b_U, softcap=softcap)
                log_q = z.log_softmax(-1)
                totals[i] += (token_kl(log_p, log_q) * share_part).sum()
                if gradient is not None:
                    slope = log_q.exp_().sub_(p).mul_(share_part if weight is None else share_part[:, None])
                    gradient[i, part] = hidden_gradient(slope, z, W_U, softcap=softcap).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return totals

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output[:, None, None], None, None, None, None, None


def mean_kl(
    h_spliced: Float[Tensor, "*passes tokens d_model"],
    h_clean: Float[Tensor, "tokens d_model"],
    W_U: Float[Tensor, "d_vocab d_model"],
    *,
    b_U: Float[Tensor, "d_vocab"] | None,
    softcap: float | None,
    weight: Float[Tensor, "tokens"] | None,
) -> Float[Tensor, "*passes"]:
    """Mean over tokens of KL(clean ‖ spliced), in nats a token; differentiable in `h_spliced` alone.

    Of one spliced pass, or of several of the same tokens, whose clean logits are then formed once. `h_*` are final hidden states
    (after the final norm); `weight` (0 or 1 a token) leaves tokens out of the mean.
    """
    passes, each = h_spliced.shape[:-2], h_spliced.shape[-2:]
    means = _MeanKL.apply(h_spliced.reshape(-1, *each), h_clean, W_U, b_U, softcap, weight)
    return means.view(passes)  # pyright: ignore[reportOptionalMemberAccess]
