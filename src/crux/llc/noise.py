"""Random numbers of chains: a pure function of (seed, chain, use, step), independent of the other chains in the batch."""

from collections.abc import Sequence
from enum import Enum

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

NUMBERS_PER_BLOCK = 65_536
"""Approximate number of normal numbers of one chain that are drawn together: those of a block of consecutive steps."""


class NoiseUse(Enum):
    """Uses of random numbers; each has an independent sequence."""

    moves = 0
    acceptance = 1
    minibatches = 2
    lengths = 3


def make_generator(seed: int, chain: int, use: NoiseUse, block: int) -> np.random.Generator:
    """Return the random generator of one block of a chain's sequence.

    Philox is counter-based: a block can be drawn without drawing those before it. `block` is the index of a block of steps (`Noise`),
    or of a single step (minibatches).
    """
    return np.random.Generator(np.random.Philox(key=[seed, chain], counter=[0, 0, block, use.value]))


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
        self.steps_per_block = max(1, NUMBERS_PER_BLOCK // n)
        self._last_blocks: dict[NoiseUse, tuple[int, Tensor]] = {}

    def normal(self, step: int) -> Float[Tensor, "row n"]:
        """Return standard normal numbers for the move of a step."""
        return self._draw(NoiseUse.moves, step)

    def uniform(self, step: int) -> Float[Tensor, "row"]:
        """Return uniform numbers from [0, 1) that decide whether a move is accepted."""
        return self._draw(NoiseUse.acceptance, step)

    def uniform_for_shortening(self, step: int) -> Float[Tensor, "row"]:
        """Return uniform numbers from [0, 1) that set by how much the leapfrog steps of a move are shortened (samplers/hmc.py)."""
        return self._draw(NoiseUse.lengths, step)

    def _draw(self, use: NoiseUse, step: int) -> Tensor:
        """Return the numbers of a step. The block to which it belongs is kept for the following steps."""
        block, position = divmod(step, self.steps_per_block)
        last_block = self._last_blocks.get(use)
        if last_block is None or last_block[0] != block:
            last_block = (block, self._draw_block(use, block))
            self._last_blocks[use] = last_block
        return last_block[1][position]

    def _draw_block(self, use: NoiseUse, block: int) -> Float[Tensor, "step row *n"]:
        """Draw the numbers of a block of steps: per step and chain, n normal numbers for a move, or one uniform number."""
        size = (self.steps_per_block, self.n) if use is NoiseUse.moves else (self.steps_per_block,)
        dtype = np.float32 if self.like.dtype is torch.float32 else np.float64
        numbers = np.empty((self.steps_per_block, len(self.rows), *size[1:]), dtype=dtype)  # steps, chains, coordinates
        for row, (seed, chain) in enumerate(self.rows):
            rng = make_generator(seed, chain, use, block)
            numbers[:, row] = (
                rng.standard_normal(size, dtype=dtype) if use is NoiseUse.moves else rng.random(size, dtype=dtype)
            )
        return torch.from_numpy(numbers).to(self.like)


def draw_minibatch_indices(
    rows: Sequence[tuple[int, int]], *, step: int, size: int, n_samples: int
) -> Int[Tensor, "row size"]:
    """Draw the indices of each chain's minibatch from `n_samples` samples, with replacement.

    Args:
        rows: for each chain, the seed of its case and its index in the case.
        size: samples per minibatch.
    """
    indices = [
        make_generator(seed, chain, NoiseUse.minibatches, step).integers(n_samples, size=size) for seed, chain in rows
    ]
    return torch.from_numpy(np.stack(indices))
