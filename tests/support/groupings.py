"""Groupings of nodes, compared."""

import torch
from torch import Tensor


def same_grouping(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two groupings are one up to the modules' numbers."""
    pairs = set(zip(torch.cat(a).tolist(), torch.cat(b).tolist(), strict=True))
    return len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})
