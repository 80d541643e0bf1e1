"""The end-to-end loss: KL(clean ‖ spliced) of the next-token distributions (Braun et al. 2405.12241, §2.2).

    KL_t = Σ_v p_tv (log p_tv − log q_tv),   p = softmax(clean logits), q = softmax(spliced logits),   in nats

It is averaged over all T positions. The direction is that of the paper and of the authors' code; a docstring in that code states
the opposite direction.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crux.sae.losses.readout import hidden_gradient, logits, token_chunks


def token_kl(log_p: Float[Tensor, "chunk d_vocab"], log_q: Float[Tensor, "chunk d_vocab"]) -> Float[Tensor, "chunk"]:
    """Return KL(p ‖ q) per token, in nats, from log-probabilities."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


class _MeanKL(torch.autograd.Function):
    """The weighted mean KL of K spliced passes. The gradient of a chunk is computed together with its loss.

    This takes 1 + 2K products with W_U per chunk, and nothing is recomputed in the backward pass.

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
        token_weight = (
            torch.full((), 1 / n_tokens, device=h_spliced.device) if weight is None else weight / weight.sum()
        )
        totals = torch.zeros(n_passes, device=h_spliced.device)
        gradient = torch.empty_like(h_spliced) if ctx.needs_input_grad[0] else None
        for part in token_chunks(n_tokens, W_U.shape[0], h_spliced.device):
            log_p = logits(h_clean[part], W_U, b_U=b_U, softcap=softcap).log_softmax(-1)
            p = log_p.exp()
            chunk_weight = token_weight if weight is None else token_weight[part]
            for i in range(n_passes):  # keep the logits of only one pass in memory
                z = logits(h_spliced[i, part], W_U, b_U=b_U, softcap=softcap)
                log_q = z.log_softmax(-1)
                totals[i] += (token_kl(log_p, log_q) * chunk_weight).sum()
                if gradient is not None:
                    slope = log_q.exp_().sub_(p).mul_(chunk_weight if weight is None else chunk_weight[:, None])
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
    """Return the mean over tokens of KL(clean ‖ spliced), in nats per token; only differentiable in `h_spliced`.

    `h_*` are final hidden states (after the final norm). There may be several spliced passes of the same tokens; then the clean
    logits are computed only once. Tokens of `weight` 0 (not 1) are left out of the mean.
    """
    passes, tokens_and_width = h_spliced.shape[:-2], h_spliced.shape[-2:]
    means = _MeanKL.apply(h_spliced.reshape(-1, *tokens_and_width), h_clean, W_U, b_U, softcap, weight)
    return means.view(passes)  # pyright: ignore[reportOptionalMemberAccess]
