"""The exact loss where exactly one feature is active: the high-sparsity limit, in closed form for any number of features.

    L = Σ_j q_j E_x Σ_i I_i (x_i − ReLU(A_ij x + b_i))²,    x_i = x if i = j, else 0;   q_j = P(feature j is the active one)

with x uniform on [0, 1], or on [−1, 1] where `signed`: n² one-dimensional integrals (reference 1.4.2). A sum over features.
Chen et al. 2310.06301 write L = H / (3c) with q_j = 1/c and take the mean over data of the sum over features too: this L is theirs.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from crux.toy.cube_moments import relu_moments


def one_active_relu_loss(
    A: Float[Tensor, "*#batch n_features n_features"],
    b: Float[Tensor, "*#batch n_features"],
    *,
    importance: Float[Tensor, "*#batch n_features"],
    probabilities: Float[Tensor, "*#batch n_features"],
    signed: bool,
) -> Float[Tensor, "*#batch"]:
    """Of x' = ReLU(A x + b) for any matrix A; `probabilities` q_j sum to one. Work and memory n² an instance."""
    n = A.shape[-1]
    A, start = torch.broadcast_tensors(A, b[..., None])
    if signed:  # x = 2t − 1
        start, A = start - A, 2 * A
    moments = relu_moments(A.reshape(-1, 1), start.reshape(-1))
    own = 2 * moments.own - moments.mean if signed else moments.own
    errors = moments.square.view(A.shape) + torch.eye(n).to(A) * (1 / 3 - 2 * own.view(A.shape))
    return (importance * (errors @ probabilities[..., None]).squeeze(-1)).sum(-1)


def one_active_tied_loss(
    W: Float[Tensor, "*#batch n_hidden n_features"],
    b: Float[Tensor, "*#batch n_features"],
    *,
    importance: Float[Tensor, "*#batch n_features"],
    probabilities: Float[Tensor, "*#batch n_features"],
    signed: bool,
) -> Float[Tensor, "*#batch"]:
    """Of the ReLU-output model x' = ReLU(WᵀW x + b); columns of W are the features."""
    return one_active_relu_loss(W.mT @ W, b, importance=importance, probabilities=probabilities, signed=signed)
