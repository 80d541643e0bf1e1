"""Neighbour mixing: whether the latents of two SAEs are near to each other, in numbers instead of by eye on a UMAP picture."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.config.progress import track
from crux.sae.geometry.nearest import BLOCK

NEIGHBOURS = 15
"""Number of nearest neighbours; UMAP's default as well."""


class NeighbourMixing(NamedTuple):
    """The share of nearest neighbours that come from the own SAE, minus what is expected if both are mixed; 0 is mixed."""

    excess_a: float
    """Mean over the latents of the first SAE, from −1 to 1; positive: its latents are near to each other."""
    excess_b: float
    """Mean over those of the second SAE."""
    share_a: float
    """The share itself, for the first SAE."""
    share_b: float

    @property
    def excess(self) -> float:
        """The mean over both SAEs, each with the same weight."""
        return (self.excess_a + self.excess_b) / 2


@torch.no_grad()
def measure_mixing(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, k: int = NEIGHBOURS, euclidean: bool = False
) -> NeighbourMixing:
    """Return how the k nearest neighbours of each row in the joint dictionary divide between its own SAE and the other one.

    A row is not its own neighbour, so that the expected share of its own SAE is (n − 1)/(n + m − 1).

    Args:
        a: unit rows; b: unit rows too. With `euclidean`, points of any norm, such as those of a UMAP plane.
        euclidean: nearest by distance instead of by cosine.

    Raises:
        UserError: if one of them has fewer than two rows, or both together no more than k.
    """
    n, m = len(a), len(b)
    if min(n, m) < 2 or n + m <= k:
        raise UserError(f"neighbour mixing needs two latents of each SAE and more than {k} of both, not {n} and {m}")
    joint = torch.cat([a, b])
    of_a = torch.empty(n + m, dtype=torch.float64)
    for first in track(range(0, n + m, BLOCK), "finding neighbours"):
        rows = joint[first : first + BLOCK]
        nearness = -torch.cdist(rows.double(), joint.double()) if euclidean else rows @ joint.T
        nearness.diagonal(first).fill_(-torch.inf)
        of_a[first : first + BLOCK] = _share_below(nearness.topk(k, dim=1).indices, n)
    share_a, share_b = float(of_a[:n].mean()), float(1 - of_a[n:].mean())
    return NeighbourMixing(share_a - (n - 1) / (n + m - 1), share_b - (m - 1) / (n + m - 1), share_a, share_b)


def _share_below(indices: Int[Tensor, "rows k"], n: int) -> Float[Tensor, "rows"]:
    return (indices < n).double().mean(1).cpu()
