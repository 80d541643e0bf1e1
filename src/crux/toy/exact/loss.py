"""The exact population loss of a toy model of superposition (Elhage et al. 2209.10652), without sampling.

    L = E_x Σ_i I_i (x_i − x'_i)²,    x' = ReLU(A x + b), with A = WᵀW for the tied model

The loss is summed over features (the paper's notebook takes the mean: divide by n_features) and averaged over the data: first
over activity patterns, then over the magnitudes of the active features, which are independent and uniform on [0, 1], or on
[−1, 1] if `signed`. It is differentiable in A, W and b. All arguments broadcast over leading batch axes (instances, densities,
importances).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from crux.toy.exact.activity import Activity
from crux.toy.exact.cube_moments import relu_moments


def relu_loss(
    A: Float[Tensor, "*#batch n_features n_features"],
    b: Float[Tensor, "*#batch n_features"],
    *,
    importance: Float[Tensor, "*#batch n_features"],
    activity: Activity,
    signed: bool,
) -> Float[Tensor, "*#batch"]:
    """Return Σ_i I_i E(x_i − ReLU(A x + b)_i)² for any matrix A, by enumerating the activity patterns.

    The error is below 1e-8 in float64. The work grows with the number of patterns times 2^(active features), so that n_features
    may be up to about 8.
    """
    patterns, weights = activity
    n = A.shape[-1]
    batch = torch.broadcast_shapes(A.shape[:-2], b.shape[:-1], importance.shape[:-1], weights.shape[:-1])
    sizes = patterns.sum(1)
    total = b.new_zeros(())
    for k in range(n + 1):
        of_size = (sizes == k).nonzero().squeeze(1)
        if len(of_size):
            errors = _pattern_errors(A, b, patterns[of_size], signed=signed)
            total = total + (errors * weights[..., None, of_size]).sum(-1)
    return (importance * total).sum(-1).expand(batch)


def _pattern_errors(A: Tensor, b: Tensor, active: Tensor, *, signed: bool) -> Tensor:
    """Return E(x_i − x'_i)² for each pattern, [*batch, n_features, n_patterns]; all patterns have the same number k of active features."""
    n, k = A.shape[-1], int(active[0].sum())
    if k == 0:
        return b.relu().square()[..., None]
    features = active.nonzero()[:, 1].view(-1, k).expand(n, -1, k)
    is_own = features == torch.arange(n, device=A.device)[:, None, None]
    own_last = is_own.long().argsort(dim=-1, stable=True)
    features = features.gather(-1, own_last)  # [n_features, n_patterns, k], the output's own feature last

    batch = torch.broadcast_shapes(A.shape[:-2], b.shape[:-1])
    a = A.gather(-1, features.flatten(1).expand(*A.shape[:-2], n, -1)).unflatten(-1, (-1, k)).expand(*batch, n, -1, k)
    start = b[..., None].expand(a.shape[:-1])
    if signed:  # x = 2t − 1
        start, a = start - a.sum(-1), 2 * a
    moments = relu_moments(a.reshape(-1, k), start.reshape(-1))
    own = 2 * moments.cross - moments.mean if signed else moments.cross
    is_active = is_own.any(-1).to(own)
    return is_active * (1 / 3 - 2 * own.view(start.shape)) + moments.square.view(start.shape)


def tied_loss(
    W: Float[Tensor, "*#batch n_hidden n_features"],
    b: Float[Tensor, "*#batch n_features"],
    *,
    importance: Float[Tensor, "*#batch n_features"],
    activity: Activity,
    signed: bool,
) -> Float[Tensor, "*#batch"]:
    """Return the exact loss of the ReLU-output model x' = ReLU(WᵀW x + b); the columns of W are the features.

    See `relu_loss` for accuracy and cost.
    """
    return relu_loss(W.mT @ W, b, importance=importance, activity=activity, signed=signed)


def feature_moments(
    activity: Activity, *, signed: bool
) -> tuple[Float[Tensor, "*batch n_features"], Float[Tensor, "*batch n_features n_features"]]:
    """Return E[x] and E[x xᵀ] of the features, from their activity patterns."""
    patterns = activity.patterns.to(activity.weights)
    mean = 0.0 if signed else 0.5
    together = torch.einsum("...p,pi,pj->...ij", activity.weights, patterns, patterns)
    density = torch.diagonal(together, dim1=-2, dim2=-1)
    return density * mean, together * mean**2 + torch.diag_embed(density * (1 / 3 - mean**2))


def independent_feature_moments(
    density: Float[Tensor, "*batch n_features"], *, signed: bool
) -> tuple[Float[Tensor, "*batch n_features"], Float[Tensor, "*batch n_features n_features"]]:
    """Return E[x] and E[x xᵀ] of any number of independent features."""
    mean = density * (0.0 if signed else 0.5)
    return mean, mean[..., None] * mean[..., None, :] + torch.diag_embed(density / 3 - mean.square())


def linear_loss(
    A: Float[Tensor, "*#batch n_features n_features"],
    b: Float[Tensor, "*#batch n_features"],
    *,
    importance: Float[Tensor, "*#batch n_features"],
    mean: Float[Tensor, "*#batch n_features"],
    second: Float[Tensor, "*#batch n_features n_features"],
) -> Float[Tensor, "*#batch"]:
    """Return the exact loss of the linear model x' = A x + b for any n_features.

        L = Σ_i I_i [(1 − A) E[x xᵀ] (1 − A)ᵀ]_ii − 2 b_i [(1 − A) E[x]]_i + b_i²

    It depends on the data only through `mean` = E[x] and `second` = E[x xᵀ].
    """
    left = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device) - A
    squares = (left @ second * left).sum(-1) - 2 * b * (left @ mean[..., None]).squeeze(-1) + b.square()
    return (importance * squares).sum(-1)
