"""The number of hidden dimensions that each column of a matrix takes up, in closed form.

The columns W_i are the directions of features in the hidden space, or the hidden vectors of training points (double descent);
the formulas are the same. Ŵ_i is W_i at unit norm, F = W Wᵀ. All quantities are computed in float64 and returned in the dtype of
W. Batch axes come first. A zero column (a dead feature) gets 0, never NaN. Elhage et al. 2209.10652, "The Geometry of Superposition".
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def dimensionality(W: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch n"]:
    """Return D_i = ‖W_i‖² / Σ_j (Ŵ_i·W_j)², the share of a dimension that each column takes up.

    For features, W is the weight matrix. For data points (D_x, Henighan et al. 2023), the columns of W are the hidden vectors
    h = W x. D_i ≤ leverage_i ≤ 1, so that Σ_i D_i ≤ rank W ≤ m. Both are equalities if every column is an eigenvector of F, that
    is if each group of mutually orthogonal columns is a tight frame.
    """
    W64 = _rescale(W)
    squares, overlaps = W64.square().sum(-2), _squared_overlaps(W64)
    return torch.where(overlaps > 0, squares / torch.where(overlaps > 0, overlaps, 1), 0).clamp(max=1).to(W.dtype)


def superposition(W: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch n"]:
    """Return Σ_{j≠i} (Ŵ_i·W_j)², the overlap of each feature with the other features; 0 if it is orthogonal to all of them."""
    W64 = W.double()
    return (_squared_overlaps(W64) - W64.square().sum(-2)).clamp(min=0).to(W.dtype)


def norms(W: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch n"]:
    """Return ‖W_i‖: near 1 for a feature that is represented, near 0 for one that is not."""
    return W.double().norm(dim=-2).to(W.dtype)


def dimensions_per_feature(W: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch"]:
    """Return D* = m / ‖W‖_F², the hidden dimensions per represented feature; infinite if W is zero."""
    return (W.shape[-2] / W.double().square().sum((-2, -1))).to(W.dtype)


def leverage(W: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch n"]:
    """Return the leverage scores W_iᵀ F⁺ W_i = Σ_k V_ki²; they sum to the rank.

    The sum is over singular values above max(m, n) · ε times the largest, with ε that of the dtype of W. A column that is smaller than
    the rounding error of the others has leverage 0.
    """
    _, scale, Vh = torch.linalg.svd(_rescale(W), full_matrices=False)
    significant = scale > _rank_tolerance(W) * scale.amax(-1, keepdim=True)
    return (Vh.square() * significant.unsqueeze(-1)).sum(-2).clamp(max=1).to(W.dtype)


def column_rank(W: Float[Tensor, "*batch m n"]) -> Int[Tensor, "*batch"]:
    """Return the numerical rank of W with its columns normalised, so that faint columns count like the others.

    It is the number of singular values of Ŵ above max(m, n) · ε times the largest.
    """
    return torch.linalg.matrix_rank(unit_columns(_rescale(W)), rtol=_rank_tolerance(W))


def unit_columns(W: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch m n"]:
    """Return Ŵ: each column scaled to unit norm; a zero column stays zero."""
    W64 = W.double()
    length = W64.norm(dim=-2, keepdim=True)
    return (W64 / torch.where(length > 0, length, 1)).to(W.dtype)


def _squared_overlaps(W64: Tensor) -> Tensor:
    """Return Σ_j (Ŵ_i·W_j)² = Ŵ_iᵀ F Ŵ_i, without forming the n × n matrix of overlaps."""
    directions = unit_columns(W64)
    return (directions * (W64 @ W64.mT @ directions)).sum(-2)


def _rescale(W: Tensor) -> Tensor:
    """Return W / max |W| per matrix, so that squares neither overflow nor vanish; D, leverage and rank do not change."""
    W64 = W.double()
    largest = W64.abs().amax((-2, -1), keepdim=True)
    return W64 / torch.where(largest > 0, largest, 1)


def _rank_tolerance(W: Tensor) -> float:
    return max(W.shape[-2:]) * torch.finfo(W.dtype).eps
