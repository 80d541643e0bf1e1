"""The held-out windows for evaluations: always the same ones, evenly spaced over the whole stream."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def spread_batches(
    tokens: np.ndarray, *, context: int, batch: int, n_tokens: int
) -> Iterator[Int[Tensor, "batch context"]]:
    """Yield batches of non-overlapping windows of `context` tokens, evenly spaced, about `n_tokens` tokens in total.

    There is no seed, so that all SAEs of a subject are evaluated on the same windows. A short stream yields fewer.
    """
    available = len(tokens) // context
    wanted = max(1, min(n_tokens // context, available))
    starts = [i * available // wanted * context for i in range(wanted)]
    for first in range(0, wanted, batch):
        windows = [np.asarray(tokens[s : s + context]) for s in starts[first : first + batch]]
        yield torch.from_numpy(np.stack(windows).astype(np.int64))
