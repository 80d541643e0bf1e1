"""Random numbers of a chain: a pure function of (its seed, its number, purpose, step), whatever chains run next to it."""

from collections.abc import Sequence
from enum import Enum

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 65_536
"""Normal numbers that a chain draws at once, approximately."""


class Use(Enum):
    """What random numbers are for; each has a sequence of its own."""

    moves = 0
    acceptance = 1
    minibatches = 2
    lengths = 3


def generator(seed: int, chain: int, use: Use, index: int) -> np.random.Generator:
    """A counter-based generator needs no history."""
    return np.random.Generator(np.random.Philox(key=[seed, chain], counter=[0, 0, index, use.value]))


class Noise:
    """The noise of all chains, one row per chain.

    Args:
        seeds: of each case; two cases of one seed see the same noise, chain by chain.
        n_chains: of each case.
        n: coordinates.
        like: whose dtype and device the noise has.
    """

    def __init__(self, seeds: Sequence[int], *, n_chains: int, n: int, like: Tensor) -> None:
        self.rows = [(seed, chain) for seed in seeds for chain in range(n_chains)]
        self.n, self.like = n, like
        self.per_block = max(1, BLOCK // n)
        self._blocks: dict[Use, tuple[int, Tensor]] = {}

    def normal(self, step: int) -> Float[Tensor, "row n"]:
        """Standard normal."""
        return self._of(Use.moves, step)

    def uniform(self, step: int) -> Float[Tensor, "row"]:
        """From [0, 1), for accepting and refusing."""
        return self._of(Use.acceptance, step)

    def length(self, step: int) -> Float[Tensor, "row"]:
        """From [0, 1), for the lengths of trajectories."""
        return self._of(Use.lengths, step)

    def _of(self, use: Use, step: int) -> Tensor:
        block, at = divmod(step, self.per_block)
        drawn_block = self._blocks.get(use)
        if drawn_block is None or drawn_block[0] != block:
            size = (self.per_block, self.n) if use is Use.moves else (self.per_block,)
            dtype = np.float32 if self.like.dtype is torch.float32 else np.float64
            drawn = np.empty((self.per_block, len(self.rows), *size[1:]), dtype=dtype)
            for row, (seed, chain) in enumerate(self.rows):
                rng = generator(seed, chain, use, block)
                drawn[:, row] = (
                    rng.standard_normal(size, dtype=dtype) if use is Use.moves else rng.random(size, dtype=dtype)
                )
            drawn_block = (block, torch.from_numpy(drawn).to(self.like))
            self._blocks[use] = drawn_block
        return drawn_block[1][at]


def places(rows: Sequence[tuple[int, int]], *, step: int, size: int, of: int) -> Int[Tensor, "row size"]:
    """Return which of `of` samples each chain's minibatch holds, drawn with replacement."""
    drawn = [generator(seed, chain, Use.minibatches, step).integers(of, size=size) for seed, chain in rows]
    return torch.from_numpy(np.stack(drawn))
