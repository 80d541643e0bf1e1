"""Random permutations of tokens without a fixed point."""

import torch
from jaxtyping import Int
from torch import Tensor


def cycle(n: int, *, generator: torch.Generator, device: torch.device) -> Int[Tensor, "n"]:
    """Draw a permutation of n ≥ 2 items, one long cycle, so that no item stays in its place."""
    assert n >= 2, "one item cannot take the place of another"
    order = torch.randperm(n, generator=generator, device=device)
    partners = torch.empty_like(order)
    partners[order] = order.roll(-1)
    return partners
