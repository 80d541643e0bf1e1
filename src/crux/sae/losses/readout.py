"""Logits and cross-entropy from final hidden states, in chunks of tokens: a `tokens × vocab` tensor never exists."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 2**21, "cuda": 2**26}
"""Number of logits in memory at once, by type of device: they fit the CPU's cache, or keep a GPU busy."""


def token_chunks(n_tokens: int, d_vocab: int, device: torch.device) -> Iterator[slice]:
    """Return slices of tokens whose logits fit into memory; at least four of them, even if the batch is short."""
    # 2**24 logits on other devices; at most a quarter of the tokens
    chunk = max(1, min(CHUNK_ELEMENTS.get(device.type, 2**24) // d_vocab, -(-n_tokens // 4)))
    return (slice(start, start + chunk) for start in range(0, n_tokens, chunk))


def logits(
    h: Float[Tensor, "chunk d_model"],
    W_U: Float[Tensor, "d_vocab d_model"],
    *,
    b_U: Float[Tensor, "d_vocab"] | None,
    softcap: float | None,
) -> Float[Tensor, "chunk d_vocab"]:
    """Return float32 logits u = h W_Uᵀ + b_U, capped to s·tanh(u/s) if the network has a soft-cap s (Gemma 2)."""
    u = torch.nn.functional.linear(h.to(W_U.dtype), W_U, b_U).float()
    return u if softcap is None else softcap * torch.tanh(u / softcap)


def hidden_gradient(
    slope: Float[Tensor, "chunk d_vocab"],
    z: Float[Tensor, "chunk d_vocab"],
    W_U: Float[Tensor, "d_vocab d_model"],
    *,
    softcap: float | None,
) -> Float[Tensor, "chunk d_model"]:
    """Return ∂loss/∂h from `slope` = ∂loss/∂z, which is overwritten; z are the capped logits, with ∂z/∂u = 1 − (z/s)²."""
    if softcap is not None:
        slope *= 1 - (z / softcap).square_()
    return slope.to(W_U.dtype) @ W_U


def token_cross_entropy(log_q: Float[Tensor, "chunk d_vocab"], labels: Int[Tensor, "chunk"]) -> Float[Tensor, "chunk"]:
    """Return −log q(label) per token, in nats.

    The label of position t is the token at t + 1; the caller must have shifted the labels.
    """
    return -log_q.gather(-1, labels[:, None])[:, 0]


@torch.no_grad()
def chunked_cross_entropy(
    h: Float[Tensor, "tokens d_model"],
    W_U: Float[Tensor, "d_vocab d_model"],
    *,
    b_U: Float[Tensor, "d_vocab"] | None,
    softcap: float | None,
    labels: Int[Tensor, "tokens"],
) -> Float[Tensor, "tokens"]:
    """Return the cross-entropy of each token in nats, without gradients; the labels are as in `token_cross_entropy`."""
    parts = [
        token_cross_entropy(logits(h[part], W_U, b_U=b_U, softcap=softcap).log_softmax(-1), labels[part])
        for part in token_chunks(len(h), len(W_U), h.device)
    ]
    return torch.cat(parts)
