"""The exact loss when exactly one feature is active: the high-sparsity limit, in closed form for any number of features.

    L = Σ_j q_j E_x Σ_i I_i (x_i − ReLU(A_ij x + b_i))²,    x_i = x if i = j, else 0;   q_j = P(feature j is the active one)

with x uniform on [0, 1], or on [−1, 1] if `signed`: n² one-dimensional integrals (docs/reference/toy_models.md §4.2). The loss
is summed over features and averaged over data. It equals L = H / (3c) of Chen et al. 2310.06301, who have q_j = 1/c.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def one_active_relu_loss(
    A: Float[Tensor, "*#batch n_features n_features"],
    b: Float[Tensor, "*#batch n_features"],
    *,
    importance: Float[Tensor, "*#batch n_features"],
    probabilities: Float[Tensor, "*#batch n_features"],
    signed: bool,
) -> Float[Tensor, "*#batch"]:
    """Return the exact loss of x' = ReLU(A x + b) for any matrix A.

    The `probabilities` q_j sum to one. Work and memory are proportional to n² per instance.
    """
    A, start = torch.broadcast_tensors(A, b[..., None])
    if signed:  # x = 2t − 1
        start, A = start - A, 2 * A
    # u = start + A t is positive on a share of the interval 0 ≤ t ≤ 1, where it runs from `low` to `high`
    low, high = start.clamp(min=0), (start + A).clamp(min=0)
    crosses = (start > 0) != (start + A > 0)
    share = torch.where(crosses, (low + high) / torch.where(crosses, A.abs(), 1), 1)
    square = share * (low * low + low * high + high * high) / 3
    low, high, share, crosses = (v.diagonal(dim1=-2, dim2=-1) for v in (low, high, share, crosses))
    mean = share * (low + high) / 2
    first = torch.where(crosses & (high > 0), 1 - share, 0)
    own = first * mean + share * share * (low + 2 * high) / 6  # E[t ReLU(u)]
    own = 2 * own - mean if signed else own
    errors = square + torch.diag_embed(1 / 3 - 2 * own)
    return (importance * (errors @ probabilities[..., None]).squeeze(-1)).sum(-1)


def one_active_tied_loss(
    W: Float[Tensor, "*#batch n_hidden n_features"],
    b: Float[Tensor, "*#batch n_features"],
    *,
    importance: Float[Tensor, "*#batch n_features"],
    probabilities: Float[Tensor, "*#batch n_features"],
    signed: bool,
) -> Float[Tensor, "*#batch"]:
    """Return the exact loss of the ReLU-output model x' = ReLU(WᵀW x + b); the columns of W are the features."""
    return one_active_relu_loss(W.mT @ W, b, importance=importance, probabilities=probabilities, signed=signed)
