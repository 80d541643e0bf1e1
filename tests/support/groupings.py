"""Compare groupings of nodes."""

import torch
from torch import Tensor


def same_grouping(a: list[Tensor], b: list[Tensor]) -> bool:
    """Return whether two groupings are the same apart from the numbers of the modules."""
    pairs = set(zip(torch.cat(a).tolist(), torch.cat(b).tolist(), strict=True))
    return len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})
