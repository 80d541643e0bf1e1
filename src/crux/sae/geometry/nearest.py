"""The most similar direction of another dictionary, or of the same one: maximal signed cosines, in blocks of rows.

Codes are not negative, so a latent and its negative are different latents: cosines are signed, and the largest one counts, not the
largest absolute value (Braun et al. 2405.12241, section 4.1; MMCS in the code of Cunningham et al. 2309.08600).
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.config.progress import track

BLOCK = 1024
"""Rows whose cosines with all others are in memory at the same time."""

NO_LATENT = -1
"""Index of the nearest latent if there is no other one."""


class Nearest(NamedTuple):
    """The most similar direction of another dictionary (or another one of the same dictionary) for each direction."""

    cosines: Float[np.ndarray, "n"]
    """The largest signed cosine; NaN if there is no other direction."""
    indices: Int[np.ndarray, "n"]
    """The row that has it, the first one of several; `NO_LATENT` if there is none."""

    @property
    def mean(self) -> float:
        """The mean over directions (MMCS); NaN without any."""
        return float(np.mean(self.cosines, dtype=np.float64)) if len(self.cosines) else float("nan")


def normalise_rows(directions: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Return the directions with unit norm, in float32.

    Raises:
        UserError: if a direction is zero or not finite, because it has no cosine.
    """
    norms = directions.detach().double().norm(dim=1, keepdim=True)
    bad = ~(norms.isfinite() & (norms > 0)).flatten()
    if bad.any():
        raise UserError(f"direction {int(bad.nonzero()[0])} is zero or not finite, so it has no cosine with others")
    return (directions.detach().double() / norms).float()


@torch.no_grad()
def find_nearest(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"] | None = None, *, block: int = BLOCK) -> Nearest:
    """Return max_j ⟨a_i, b_j⟩ for each row i of `a`; without `b`, over the other rows of `a` itself.

    Args:
        a: unit rows; b: unit rows too.
        block: rows of `a` whose cosines are in memory at once.
    """
    others = a if b is None else b
    n_others = len(others) - (b is None)
    if n_others < 1:
        return Nearest(np.full(len(a), np.nan, np.float32), np.full(len(a), NO_LATENT))
    cosines, indices = np.empty(len(a), np.float32), np.empty(len(a), np.int64)
    for first in track(range(0, len(a), block), "comparing directions"):
        similarity = a[first : first + block] @ others.T
        if b is None:
            similarity.diagonal(first).fill_(-torch.inf)
        best = similarity.max(1)
        cosines[first : first + block], indices[first : first + block] = best.values.cpu(), best.indices.cpu()
    return Nearest(cosines, indices)


@torch.no_grad()
def find_nearest_both_ways(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, block: int = BLOCK
) -> tuple[Nearest, Nearest]:
    """Return the nearest rows of `b` for the rows of `a`, and those of `a` for the rows of `b`, from one pass over the cosines."""
    if len(a) == 0 or len(b) == 0:
        return find_nearest(a, b), find_nearest(b, a)
    cosines, indices = np.empty(len(a), np.float32), np.empty(len(a), np.int64)
    back = torch.full((len(b),), -torch.inf, device=b.device)
    back_indices = torch.full((len(b),), NO_LATENT, device=b.device)
    for first in track(range(0, len(a), block), "comparing directions"):
        similarity = a[first : first + block] @ b.T
        best, best_back = similarity.max(1), similarity.max(0)
        cosines[first : first + block], indices[first : first + block] = best.values.cpu(), best.indices.cpu()
        better = best_back.values > back
        back = torch.where(better, best_back.values, back)
        back_indices = torch.where(better, best_back.indices + first, back_indices)
    return Nearest(cosines, indices), Nearest(back.cpu().numpy(), back_indices.cpu().numpy())


@torch.no_grad()
def find_candidates(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, k: int, block: int = BLOCK
) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """Return the k largest cosines of each row of `a` with rows of `b`, largest first, and their rows; fewer if `b` has fewer."""
    k = min(k, len(b))
    cosines, indices = np.empty((len(a), k), np.float32), np.empty((len(a), k), np.int64)
    for first in track(range(0, len(a), block), "comparing directions"):
        best = (a[first : first + block] @ b.T).topk(k, dim=1)
        cosines[first : first + block], indices[first : first + block] = best.values.cpu(), best.indices.cpu()
    return cosines, indices
