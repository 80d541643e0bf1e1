"""Shuffled batches of token windows; batch i is a pure function of (seed, i), so that a resumed run continues exactly."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from crux.config.errors import UserError


class Batches(Sequence[Tensor]):
    """A sequence of batches of shuffled windows of `context` tokens; each epoch uses a new order and a new offset.

    Args:
        tokens: the tokens of all documents, joined by the end-of-text token; memory-mapped or in memory.
        context: tokens per window.
        batch: windows per batch.
        seed: determines offsets and order.
        n_batches: length of the sequence; it may span several epochs.

    Raises:
        UserError: if there are fewer tokens than in two windows.
    """

    def __init__(self, tokens: np.ndarray, *, context: int, batch: int, seed: int, n_batches: int) -> None:
        if len(tokens) < 2 * context:
            raise UserError(
                f"the text is too short: {len(tokens):,} tokens, at least {2 * context:,} (two contexts) are needed"
            )
        self.tokens, self.context, self.batch, self.seed, self.n_batches = tokens, context, batch, seed, n_batches
        # whatever the epoch's offset, 0 to context − 1 tokens, this many whole windows must remain after it
        self.windows_per_epoch = (len(tokens) - (context - 1)) // context
        self._epoch, self._order, self._offset = -1, np.empty(0, np.int64), 0

    def __len__(self) -> int:
        return self.n_batches

    def __getitem__(self, i: int) -> Int[Tensor, "batch context"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= i < self.n_batches:
            raise IndexError(i)
        windows = np.stack([self._read_window(n) for n in range(i * self.batch, (i + 1) * self.batch)])
        return torch.from_numpy(windows.astype(np.int64))

    def _read_window(self, n: int) -> np.ndarray:
        """Return window n, counted over all epochs."""
        epoch, position = divmod(n, self.windows_per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._epoch, self._order = epoch, rng.permutation(self.windows_per_epoch)
            self._offset = int(rng.integers(0, self.context))
        start = self._offset + int(self._order[position]) * self.context
        return np.asarray(self.tokens[start : start + self.context])
