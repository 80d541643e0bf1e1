"""The held-out windows for evaluations: always the same ones, evenly spaced over all held-out tokens."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def spread_batches(
    tokens: np.ndarray, *, context: int, batch: int, n_tokens: int
) -> Iterator[Int[Tensor, "batch context"]]:
    """Yield batches of non-overlapping windows of `context` tokens, evenly spaced, about `n_tokens` tokens in total.

    There is no seed, so that all SAEs of a subject are evaluated on the same windows. If there are fewer than `n_tokens` tokens, all whole
    windows are yielded.
    """
    n_available = len(tokens) // context
    n_windows = max(1, min(n_tokens // context, n_available))
    starts = [i * n_available // n_windows * context for i in range(n_windows)]  # each a multiple of `context`
    for first in range(0, n_windows, batch):
        windows = [np.asarray(tokens[start : start + context]) for start in starts[first : first + batch]]
        yield torch.from_numpy(np.stack(windows).astype(np.int64))
