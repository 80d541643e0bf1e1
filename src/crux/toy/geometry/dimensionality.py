"""How many dimensions each column of a matrix has to itself, in closed form.

The columns W_i are features' directions in the hidden space, or training points' hidden vectors (double descent): the
formulas are the same. Ŵ_i is W_i at unit norm, F = W Wᵀ. Everything is worked out in float64 and returned in W's dtype;
batch axes lead; a zero column (a dead feature) has 0 of everything, never NaN. Elhage et al. 2022, "The Geometry of Superposition".
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def dimensionality(W: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch n"]:
    """D_i = ‖W_i‖² / Σ_j (Ŵ_i·W_j)², the share of a dimension that each column has to itself.

    Features: W is the weight matrix. Data points (D_x, Henighan et al. 2023): W holds the hidden vectors h = W x as columns.
    D_i ≤ leverage_i ≤ 1 and so Σ_i D_i ≤ rank W ≤ m, with equality where every column is an eigenvector of F: where each
    group of mutually orthogonal columns is a tight frame.
    """
    W64 = _at_most_one(W)
    own, seen = W64.square().sum(-2), _seen(W64)
    return torch.where(seen > 0, own / torch.where(seen > 0, seen, 1), 0).clamp(max=1).to(W.dtype)


def superposition(W: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch n"]:
    """Σ_{j≠i} (Ŵ_i·W_j)²: how much of the other features a feature's direction sees; 0 where it is orthogonal to all."""
    W64 = W.double()
    return (_seen(W64) - W64.square().sum(-2)).clamp(min=0).to(W.dtype)


def norms(W: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch n"]:
    """‖W_i‖: near 1 for a feature that is represented, near 0 for one that is not."""
    return W.double().norm(dim=-2).to(W.dtype)


def dimensions_per_feature(W: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch"]:
    """D* = m / ‖W‖_F², hidden dimensions per represented feature; infinite where W is zero."""
    return (W.shape[-2] / W.double().square().sum((-2, -1))).to(W.dtype)


def leverage(W: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch n"]:
    """Leverage scores W_iᵀ F⁺ W_i = Σ_k V_ki², over the singular values above max(m, n) · ε · the largest; they add up to the rank.

    ε is that of W's dtype: a column that is fainter than rounding in the others has no leverage.
    """
    _, scale, Vh = torch.linalg.svd(_at_most_one(W), full_matrices=False)
    counted = scale > _least(W) * scale.amax(-1, keepdim=True)
    return (Vh.square() * counted.unsqueeze(-1)).sum(-2).clamp(max=1).to(W.dtype)


def rank(W: Float[Tensor, "*batch m n"]) -> Int[Tensor, "*batch"]:
    """Numerical rank of W, by the singular values of Ŵ (faint columns count like the others) above max(m, n) · ε · the largest."""
    return torch.linalg.matrix_rank(unit_columns(_at_most_one(W)), rtol=_least(W))


def unit_columns(W: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch m n"]:
    """Ŵ: each column at unit norm; a zero column stays zero."""
    W64 = W.double()
    length = W64.norm(dim=-2, keepdim=True)
    return (W64 / torch.where(length > 0, length, 1)).to(W.dtype)


def _seen(W64: Tensor) -> Tensor:
    """Σ_j (Ŵ_i·W_j)² = Ŵ_iᵀ F Ŵ_i, without the n × n matrix of overlaps."""
    directions = unit_columns(W64)
    return (directions * (W64 @ W64.mT @ directions)).sum(-2)


def _at_most_one(W: Tensor) -> Tensor:
    """W / max |W| per matrix: squares neither overflow nor vanish. D, leverage and rank stay the same."""
    W64 = W.double()
    largest = W64.abs().amax((-2, -1), keepdim=True)
    return W64 / torch.where(largest > 0, largest, 1)


def _least(W: Tensor) -> float:
    return max(W.shape[-2:]) * torch.finfo(W.dtype).eps
