"""The loss whose gradient a gradient SAE looks at: summed over tokens, so that no batch size is in it (g-SAE, 2411.10397).

    data         Σ_t −log q_t(token t+1)          the text's own next tokens: the label leaks into what looks at the gradient
    sampled      Σ_t −log q_t(y_t),  y_t ~ q_t    independent of the data; E[g gᵀ] is the predictions' information matrix
    top_logit    Σ_t −max_v z_tv                  minus the top logit, so that every target falls as its label gets likelier

with z the (capped) logits, q = softmax(z). In nats, but for `top_logit`, which has the unit of a logit.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.sae.losses.readout import hidden_gradient, logits, token_chunks, token_cross_entropy

LabelTarget = Literal["data", "sampled", "top_logit"]


class _LabelLoss(torch.autograd.Function):
    """The sum, with each chunk's gradient formed beside its loss: ∂(−log q(y))/∂z = q − 1_y, ∂(−z_y)/∂z = −1_y."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        h: Tensor,
        W_U: Tensor,
        b_U: Tensor | None,
        softcap: float | None,
        target: LabelTarget,
        next_tokens: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        total = torch.zeros((), device=h.device)
        gradient = torch.empty_like(h) if ctx.needs_input_grad[0] else None
        for part in token_chunks(len(h), len(W_U), h.device):
            z = logits(h[part], W_U, b_U=b_U, softcap=softcap)
            if target == "top_logit":
                top, label = z.max(-1)
                total -= top.sum()
                if gradient is not None:  # one row of W_U a token: no product
                    cap = torch.ones_like(top) if softcap is None else 1 - (top / softcap).square()
                    gradient[part] = (-cap[:, None] * W_U[label]).to(h.dtype)
                continue
            log_q = z.log_softmax(-1)
            q = log_q.exp()
            label = next_tokens[part] if target == "data" else draw_labels(q, generator)
            total += token_cross_entropy(log_q, label).sum()
            if gradient is not None:
                slope = q.scatter_(-1, label[:, None], q.gather(-1, label[:, None]) - 1)
                gradient[part] = hidden_gradient(slope, z, W_U, softcap=softcap).to(h.dtype)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output, None, None, None, None, None, None


def draw_labels(q: Float[Tensor, "chunk d_vocab"], generator: torch.Generator | None) -> Int[Tensor, "chunk"]:
    """A label a token from its distribution: the first arrival of Poisson processes with rates q. No host sync."""
    return (q / torch.empty_like(q).exponential_(generator=generator)).argmax(-1)


def label_loss(
    h: Float[Tensor, "batch pos d_model"],
    W_U: Float[Tensor, "d_vocab d_model"],
    *,
    b_U: Float[Tensor, "d_vocab"] | None,
    softcap: float | None,
    tokens: Int[Tensor, "batch pos"],
    target: LabelTarget,
    generator: torch.Generator | None,
) -> Float[Tensor, ""]:
    """Summed loss of the labels that `target` names, given final hidden states; differentiable in `h` alone.

    `data` sums over the T − 1 predictions of each sequence, as its last position has no label; the others sum over all T.
    `tokens` matter to `data` alone, `generator` (on the device of `h`) to `sampled` alone. Two d·V products a token, for
    `top_logit` one. A tokens × vocab tensor never exists.
    """
    assert target != "sampled" or generator is not None, "labels are drawn from a generator that is passed in"
    if target == "data":
        h, tokens = h[:, :-1], tokens[:, 1:]
    flat = h.reshape(-1, h.shape[-1])
    return _LabelLoss.apply(flat, W_U, b_U, softcap, target, tokens.reshape(-1), generator)  # pyright: ignore[reportReturnType]
