"""Which directions of a dictionary lie where the network does not look: outside of the span that an interaction basis reads.

What a basis reads of an activation is f C. With Q an orthonormal basis of the span of C's columns, a change of f orthogonal to Q changes no
coordinate. Of a decoder direction d of unit norm the share 1 − ‖d Q‖² lies out there (Bushnaq et al. 2405.10928; the question that
Braun et al. 2405.12241 answer by training end to end).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crux.config.errors import UserError
from crux.degeneracy.basis import Basis
from crux.sae.architectures.sae import SAE


class Outside(NamedTuple):
    """How much of a dictionary the network does not look at."""

    share: Float[Tensor, "n_latents"]
    """1 − ‖d Q‖² of each direction; 0: wholly read, 1: not at all."""
    living: Bool[Tensor, "n_latents"]
    """Fires on some of the activations."""
    mean: float
    """Mean share of the living latents, each the same."""
    weighted: float
    """Mean share with weights E[c²]: as much as each latent writes."""
    mostly: int
    """Living latents of which more than half lies outside."""
    explained_inside: float
    """Explained variance of the part of the activations that is read, f Q Qᵀ."""
    explained_outside: float
    """Explained variance of the rest; nan where there is none."""


def reading(basis: Basis, *, left_out: float) -> Float[Tensor, "d k"]:
    """Q: of the strongest directions, as few as leave out no more than this share of Σ Λ.

    Raises:
        UserError: for a share that is not from 0 up to but not 1.
    """
    if not 0 <= left_out < 1:
        raise UserError(f"left_out={left_out}: must be from 0 up to but not 1")
    shares = basis.strength.cumsum(0) / basis.strength.sum()
    n = min(int((shares < 1 - left_out).sum()) + 1, basis.size)
    return torch.linalg.qr(basis.C[:, :n]).Q


@torch.no_grad()
def outside(
    sae: SAE, reads: Float[Tensor, "tokens d_in"], writes: Float[Tensor, "tokens d"], Q: Float[Tensor, "_d k"]
) -> Outside:
    """Of an SAE's dictionary, and of what it makes of some activations.

    Args:
        reads: the activations that it encodes.
        writes: those that its decoder is to give: the same ones, but for a transcoder.
        Q: see `reading`, at the hook point where it writes.

    Raises:
        UserError: where the dictionary does not live in Q's space, and for an SAE none of whose latents fires.
    """
    D = sae.fold().dictionary().double()
    if D.shape[1] != len(Q):
        raise UserError(f"the dictionary has directions of {D.shape[1]} dimensions, the basis of {len(Q)}")
    codes = sae.encode(reads.to(sae.W_enc))
    weight = codes.c.double().square().mean(0)
    living = weight > 0
    if not bool(living.any()):
        raise UserError("no latent fires on these activations")
    share = (1 - (D @ Q).square().sum(1)).clamp(min=0)
    guess, truth = sae.decode(codes).double(), writes.double()
    inside = (guess @ Q, truth @ Q)
    rest = (guess - inside[0] @ Q.T, truth - inside[1] @ Q.T)
    return Outside(
        share=share,
        living=living,
        mean=float(share[living].mean()),
        weighted=float((weight * share).sum() / weight.sum()),
        mostly=int((share[living] > 0.5).sum()),
        explained_inside=_explained(*inside),
        explained_outside=_explained(*rest) if Q.shape[1] < len(Q) else float("nan"),
    )


def _explained(guess: Float[Tensor, "tokens d"], truth: Float[Tensor, "tokens d"]) -> float:
    """1 − Σ‖x − x̂‖² / Σ‖x − mean‖²."""
    return 1 - float((truth - guess).square().sum() / (truth - truth.mean(0)).square().sum())
