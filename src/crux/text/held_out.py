"""The held-out windows that an SAE is judged on: always the same ones, spread over the whole stream."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def spread_batches(
    tokens: np.ndarray, *, context: int, batch: int, n_tokens: int
) -> Iterator[Int[Tensor, "batch context"]]:
    """Non-overlapping windows of `context` tokens, evenly spread over the stream, about `n_tokens` in all.

    No seed: every SAE of a subject is judged on the same windows. Fewer where the stream is shorter.
    """
    available = len(tokens) // context
    wanted = max(1, min(n_tokens // context, available))
    starts = [i * available // wanted * context for i in range(wanted)]
    for first in range(0, wanted, batch):
        windows = [np.asarray(tokens[s : s + context]) for s in starts[first : first + batch]]
        yield torch.from_numpy(np.stack(windows).astype(np.int64))
