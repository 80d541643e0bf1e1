"""Next-token cross-entropy, in nats."""

from jaxtyping import Float, Int
from torch import Tensor


def token_cross_entropy(log_q: Float[Tensor, "chunk d_vocab"], labels: Int[Tensor, "chunk"]) -> Float[Tensor, "chunk"]:
    """−log q(label) a token. The label of position t is the token at t + 1: shifting is the caller's."""
    return -log_q.gather(-1, labels[:, None])[:, 0]
