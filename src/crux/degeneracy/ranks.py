"""Ranks of Gram matrices at relative thresholds, and how many directions of a linear map they leave free.

Of a map y = f @ Wᵀ between two hook points, the behavioural loss's Hessian is 2 E[(JᵀJ) ⊗ (f fᵀ)], J the Jacobian from y to the output.
With G = E[f fᵀ] and K = E[JᵀJ], every change Δ of W with K Δ G = 0 lies in its null space: d_in · d_out − rank G · rank K directions, and
no more where the expectation factorises (Bushnaq et al. 2405.10927).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError


class Rank(NamedTuple):
    """Eigenvalues above a share of the largest one."""

    threshold: float
    """The share."""
    rank: int
    energy_left: float
    """Share of the trace in the directions that are not counted."""


def check_threshold(threshold: float, *, name: str) -> None:
    """Raises UserError unless it is a share between 0 and 1."""
    if not 0 < threshold < 1:
        raise UserError(f"{name}={threshold}: must be above 0 and below 1, a share of the largest")


def eigenvalues(gram: Float[Tensor, "d d"]) -> Float[Tensor, "d"]:
    """Of a Gram matrix, the largest first; what rounding made negative is 0."""
    return torch.linalg.eigvalsh(gram.double()).flip(0).clamp(min=0)


def rank_report(values: Float[Tensor, "d"], *, thresholds: Sequence[float]) -> list[Rank]:
    """The rank at each threshold, and what it leaves out.

    Args:
        values: eigenvalues, the largest first. All zero: rank 0.

    Raises:
        UserError: for a threshold that is no share.
    """
    for threshold in thresholds:
        check_threshold(threshold, name="threshold")
    total = float(values.sum())
    found = []
    for threshold in thresholds:
        kept = int((values > threshold * values[0]).sum())
        left = float(values[kept:].sum()) / total if total else 0.0
        found.append(Rank(threshold, kept, left))
    return found


def rank(gram: Float[Tensor, "d d"], *, threshold: float) -> int:
    """Directions in which the Gram matrix has more than this share of its largest eigenvalue."""
    return rank_report(eigenvalues(gram), thresholds=(threshold,))[0].rank


def range_of(gram: Float[Tensor, "d d"], *, threshold: float) -> Float[Tensor, "d r"]:
    """Orthonormal columns that span the directions which `rank` counts."""
    check_threshold(threshold, name="threshold")
    values, vectors = torch.linalg.eigh(gram.double())
    return vectors[:, values > threshold * values[-1].clamp(min=0)]
