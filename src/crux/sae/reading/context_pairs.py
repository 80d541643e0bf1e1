"""Pairs of a direction and a context: where in which window each direction is added to the activation."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.sae.reading.sparse_codes import SparseCodes


class ContextPairs(NamedTuple):
    """Pairs of a direction and a token of a `ContextPool`, sorted by direction."""

    owners: Int[Tensor, "pairs"]
    """The direction of each pair: its place in a list of directions."""
    windows: Int[Tensor, "pairs"]
    """The window of the pool."""
    positions: Int[Tensor, "pairs"]
    """The position in the window."""

    def select(self, which: slice | Tensor) -> "ContextPairs":
        """Return some of the pairs."""
        return ContextPairs(*(tensor[which] for tensor in self))

    def counts(self, n: int) -> Int[Tensor, "n"]:
        """Return the number of contexts of each of `n` directions."""
        return torch.bincount(self.owners, minlength=n)


def pair_with_all(n: int, *, n_windows: int, position: int, device: torch.device) -> ContextPairs:
    """Return the pairs of each of `n` directions with every window of a pool, all at the same position."""
    owners = torch.arange(n, device=device).repeat_interleave(n_windows)
    windows = torch.arange(n_windows, device=device).repeat(n)
    return ContextPairs(owners, windows, torch.full_like(windows, position))


def find_firing_contexts(
    codes: SparseCodes,
    *,
    context: int,
    length: int,
    latents: Int[np.ndarray, "n"],
    n_contexts: int,
) -> tuple[ContextPairs, Float[Tensor, "pairs"]]:
    """Return up to `n_contexts` tokens on which each of the given latents fires, evenly spread over the text, and their codes.

    Position 0 and positions from `length` on are left out. The result is on the CPU.

    Args:
        codes: those of windows of `context` tokens, window by window.
        length: number of tokens of each window that the pool has.
        latents: without repetition; the owner of a pair is the place in this list.
    """
    place = np.full(codes.n_latents, -1)
    place[latents] = np.arange(len(latents))
    rows = np.repeat(np.arange(codes.n_tokens), np.diff(codes.indptr))
    owners, positions = place[codes.latents], rows % context
    keep = np.flatnonzero((owners >= 0) & (positions > 0) & (positions < length))
    keep = keep[np.argsort(owners[keep], kind="stable")]
    counts = np.bincount(owners[keep], minlength=len(latents))
    taken = np.minimum(counts, n_contexts)
    within = np.arange(taken.sum()) - np.repeat(np.cumsum(taken) - taken, taken)  # 0 … taken − 1 for each latent
    starts = np.repeat(np.cumsum(counts) - counts, taken)
    chosen = keep[starts + within * np.repeat(counts, taken) // np.repeat(np.maximum(taken, 1), taken)]
    pairs = ContextPairs(
        *(torch.from_numpy(a.astype(np.int64)) for a in (owners[chosen], rows[chosen] // context, positions[chosen]))
    )
    return pairs, torch.from_numpy(np.asarray(codes.values[chosen], np.float32))
