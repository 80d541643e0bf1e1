"""The share of an SAE's dictionary outside the subspace that the rest of the network depends on.

The interaction basis reads an activation f through its coordinates f C. Let Q be an orthonormal basis of the span of C's columns: a change
of f orthogonal to Q changes no coordinate. The share of a unit-norm decoder direction d outside this subspace is 1 − ‖d Q‖². The
basis is that of Bushnaq et al. (2405.10928); end-to-end training (Braun et al. 2405.12241) is meant to avoid such directions.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crux.config.errors import UserError
from crux.degeneracy.basis import Basis
from crux.sae.architectures.sae import SAE


class DictionaryOutside(NamedTuple):
    """The parts of a dictionary and of its reconstructions outside the subspace that the network reads."""

    share: Float[Tensor, "n_latents"]
    """1 − ‖d Q‖² of each direction; 0: entirely inside the subspace, 1: entirely outside."""
    living: Bool[Tensor, "n_latents"]
    """The latents that fire on at least one of the activations."""
    mean: float
    """Unweighted mean share of the living latents."""
    weighted: float
    """Mean share weighted by E[c²], the strength with which each latent writes."""
    mostly: int
    """Number of living latents whose share is more than one half."""
    explained_inside: float
    """Explained variance of the activations inside the subspace, f Q Qᵀ."""
    explained_outside: float
    """Explained variance of the activations outside the subspace; nan if the subspace is the whole space."""


def strongest_subspace(basis: Basis, *, left_out: float) -> Float[Tensor, "d k"]:
    """Return Q, the span of the fewest strongest directions that leave out at most this share of Σ Λ.

    Raises:
        UserError: if the share is not in [0, 1).
    """
    if not 0 <= left_out < 1:
        raise UserError(f"left_out={left_out}: must be at least 0 and below 1")
    shares = basis.strength.cumsum(0) / basis.strength.sum()
    n = min(int((shares < 1 - left_out).sum()) + 1, basis.size)
    return torch.linalg.qr(basis.C[:, :n]).Q


@torch.no_grad()
def measure_outside(
    sae: SAE, reads: Float[Tensor, "tokens d_in"], writes: Float[Tensor, "tokens d"], Q: Float[Tensor, "_d k"]
) -> DictionaryOutside:
    """Measure the shares of an SAE's dictionary outside a subspace, and the explained variance inside and outside.

    Args:
        reads: the activations that the SAE encodes.
        writes: the activations that it reconstructs: the same as `reads`, except for a transcoder.
        Q: orthonormal columns at the SAE's write hook point; see `strongest_subspace`.

    Raises:
        UserError: if the dictionary and Q differ in dimension, or if no latent fires.
    """
    D = sae.fold().dictionary().double()
    if D.shape[1] != len(Q):
        raise UserError(f"the dictionary has directions of {D.shape[1]} dimensions, the basis of {len(Q)}")
    codes = sae.encode(reads.to(sae.W_enc))
    strength = codes.c.double().square().mean(0)
    living = strength > 0
    if not bool(living.any()):
        raise UserError("no latent fires on these activations")
    share = (1 - (D @ Q).square().sum(1)).clamp(min=0)
    reconstruction, target = sae.decode(codes).double(), writes.double()
    reconstruction_inside, target_inside = reconstruction @ Q, target @ Q
    reconstruction_outside, target_outside = reconstruction - reconstruction_inside @ Q.T, target - target_inside @ Q.T
    whole_space = Q.shape[1] >= len(Q)
    return DictionaryOutside(
        share=share,
        living=living,
        mean=float(share[living].mean()),
        weighted=float((strength * share).sum() / strength.sum()),
        mostly=int((share[living] > 0.5).sum()),
        explained_inside=_explained_variance(reconstruction_inside, target_inside),
        explained_outside=float("nan") if whole_space else _explained_variance(reconstruction_outside, target_outside),
    )


def _explained_variance(reconstruction: Float[Tensor, "tokens d"], target: Float[Tensor, "tokens d"]) -> float:
    """Return 1 − Σ‖x − x̂‖² / Σ‖x − mean‖²."""
    return 1 - float((target - reconstruction).square().sum() / (target - target.mean(0)).square().sum())
