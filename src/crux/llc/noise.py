"""Random numbers of chains: a pure function of (seed, chain, use, step), independent of the other chains in the batch."""

from collections.abc import Sequence
from enum import Enum

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 65_536
"""Approximate number of normal numbers that are drawn per chain and call."""


class NoiseUse(Enum):
    """Uses of random numbers; each has an independent sequence."""

    moves = 0
    acceptance = 1
    minibatches = 2
    lengths = 3


def philox_generator(seed: int, chain: int, use: NoiseUse, index: int) -> np.random.Generator:
    """Return a generator for one block of numbers; it is counter-based, so that no earlier numbers need to be drawn."""
    return np.random.Generator(np.random.Philox(key=[seed, chain], counter=[0, 0, index, use.value]))


class Noise:
    """The noise of all chains, one row per chain.

    Args:
        seeds: one per case; two cases with the same seed have the same noise, chain by chain.
        n_chains: number of chains per case.
        n: number of coordinates.
        like: a tensor with the dtype and device of the noise.
    """

    def __init__(self, seeds: Sequence[int], *, n_chains: int, n: int, like: Tensor) -> None:
        self.rows = [(seed, chain) for seed in seeds for chain in range(n_chains)]
        self.n, self.like = n, like
        self.per_block = max(1, BLOCK // n)
        self._blocks: dict[NoiseUse, tuple[int, Tensor]] = {}

    def normal(self, step: int) -> Float[Tensor, "row n"]:
        """Return standard normal numbers for the move of a step."""
        return self._draw(NoiseUse.moves, step)

    def uniform(self, step: int) -> Float[Tensor, "row"]:
        """Return uniform numbers from [0, 1) that decide whether a move is accepted."""
        return self._draw(NoiseUse.acceptance, step)

    def length(self, step: int) -> Float[Tensor, "row"]:
        """Return uniform numbers from [0, 1) for the lengths of trajectories."""
        return self._draw(NoiseUse.lengths, step)

    def _draw(self, use: NoiseUse, step: int) -> Tensor:
        block, position = divmod(step, self.per_block)
        drawn_block = self._blocks.get(use)
        if drawn_block is None or drawn_block[0] != block:
            size = (self.per_block, self.n) if use is NoiseUse.moves else (self.per_block,)
            dtype = np.float32 if self.like.dtype is torch.float32 else np.float64
            drawn = np.empty((self.per_block, len(self.rows), *size[1:]), dtype=dtype)
            for row, (seed, chain) in enumerate(self.rows):
                rng = philox_generator(seed, chain, use, block)
                drawn[:, row] = (
                    rng.standard_normal(size, dtype=dtype) if use is NoiseUse.moves else rng.random(size, dtype=dtype)
                )
            drawn_block = (block, torch.from_numpy(drawn).to(self.like))
            self._blocks[use] = drawn_block
        return drawn_block[1][position]


def minibatch_indices(
    rows: Sequence[tuple[int, int]], *, step: int, size: int, n_samples: int
) -> Int[Tensor, "row size"]:
    """Draw the indices of each chain's minibatch from `n_samples` samples, with replacement."""
    drawn = [
        philox_generator(seed, chain, NoiseUse.minibatches, step).integers(n_samples, size=size) for seed, chain in rows
    ]
    return torch.from_numpy(np.stack(drawn))
