"""Ranks of Gram matrices at relative thresholds, from which the free directions of a linear map are counted.

For a map y = f @ Wᵀ between two hook points, the Hessian of the behavioural loss is 2 E[(JᵀJ) ⊗ (f fᵀ)], where J is the Jacobian from y
to the output. Let G = E[f fᵀ] and K = E[JᵀJ]. Every change Δ of W with K Δ G = 0 lies in the Hessian's null space. These changes
span d_in · d_out − rank G · rank K dimensions; if the expectation factorises, the null space has no others
(Bushnaq et al. 2405.10927).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError


class GramRank(NamedTuple):
    """The rank of a Gram matrix at one relative threshold."""

    threshold: float
    """Eigenvalues above this share of the largest one are counted."""
    rank: int
    """Number of eigenvalues above the threshold."""
    trace_left_out: float
    """Share of the trace in the directions that are not counted."""


def check_threshold(threshold: float, *, name: str) -> None:
    """Raise UserError unless the threshold is a share strictly between 0 and 1."""
    if not 0 < threshold < 1:
        raise UserError(f"{name}={threshold}: must be a share of the largest value, above 0 and below 1")


def gram_eigenvalues(gram: Float[Tensor, "d d"]) -> Float[Tensor, "d"]:
    """Return the eigenvalues of a Gram matrix, largest first. Values that rounding made negative are set to 0."""
    return torch.linalg.eigvalsh(gram.double()).flip(0).clamp(min=0)


def ranks_at_thresholds(values: Float[Tensor, "d"], *, thresholds: Sequence[float]) -> list[GramRank]:
    """Return the rank at each threshold, with the share of the trace that it leaves out.

    Args:
        values: eigenvalues, largest first. If all are zero, the rank is 0.

    Raises:
        UserError: if a threshold is not between 0 and 1.
    """
    for threshold in thresholds:
        check_threshold(threshold, name="threshold")
    total = float(values.sum())
    ranks = []
    for threshold in thresholds:
        rank = int((values > threshold * values[0]).sum())
        left_out = float(values[rank:].sum()) / total if total else 0.0
        ranks.append(GramRank(threshold, rank, left_out))
    return ranks


def gram_rank(gram: Float[Tensor, "d d"], *, threshold: float) -> int:
    """Return the number of a Gram matrix's eigenvalues above this share of the largest one."""
    return ranks_at_thresholds(gram_eigenvalues(gram), thresholds=(threshold,))[0].rank


def gram_range(gram: Float[Tensor, "d d"], *, threshold: float) -> Float[Tensor, "d r"]:
    """Return the eigenvectors that `gram_rank` counts, as orthonormal columns."""
    check_threshold(threshold, name="threshold")
    values, vectors = torch.linalg.eigh(gram.double())
    return vectors[:, values > threshold * values[-1].clamp(min=0)]
