"""Label losses, whose gradients are used by g-SAEs (Olmo et al. 2411.10397) and by the Fisher loss.

They are summed over tokens, so that they do not depend on the batch size:

    data         Σ_t −log q_t(token t+1)          the next tokens of the text: codes that use the gradient have seen the label
    sampled      Σ_t −log q_t(y_t),  y_t ~ q_t    independent of the text; E[g gᵀ] is the Fisher information of the predictions
    top_logit    Σ_t −max_v z_tv                  minus the top logit, so that each loss falls when its label becomes likelier

with z the (capped) logits and q = softmax(z). The unit is nats; `top_logit` has the unit of a logit.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.sae.losses.readout import hidden_gradient, logits, token_chunks, token_cross_entropy

LabelTarget = Literal["data", "sampled", "top_logit"]


class _LabelLoss(torch.autograd.Function):
    """The summed label loss. The gradient of a chunk is computed together with its loss.

    ∂(−log q(y))/∂z = q − 1_y and ∂(−z_y)/∂z = −1_y.
    """

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
                if gradient is not None:  # one row of W_U per token: no matrix product
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
    """Draw one label per token from its distribution q, without waiting for the device.

    The label is the first arrival among Poisson processes with rates q.
    """
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
    """Return the summed loss of the labels that `target` names, given final hidden states; only differentiable in `h`.

    `data` sums over the T − 1 predictions of each sequence, as its last position has no label; the other targets sum over all T
    positions. Only `data` uses `tokens`, only `sampled` uses `generator` (on the device of `h`). The cost is two d·V products per
    token, one for `top_logit`. A tokens × vocab tensor never exists.
    """
    assert target != "sampled" or generator is not None, "drawn labels need a generator"
    if target == "data":
        h, tokens = h[:, :-1], tokens[:, 1:]
    flat = h.reshape(-1, h.shape[-1])
    return _LabelLoss.apply(flat, W_U, b_U, softcap, target, tokens.reshape(-1), generator)  # pyright: ignore[reportReturnType]
