"""The interaction basis: directions at a hook point that neither covary nor mix what later layers read (Bushnaq et al. 2405.10928).

From the last hook point backwards. With G = E[(f − μ)(f − μ)ᵀ] = U D Uᵀ, R = U D^(-1/2), R⁺ = D^(1/2) Uᵀ and the Jacobian Gram M' into the
basis of a later hook point (grams.py): R⁺ M' R⁺ᵀ = V Λ Vᵀ, and

    C = R V Λ^(1/2),  C⁺ = Λ^(-1/2) Vᵀ R⁺.

So E[f̂ᵀ f̂] = Λ, the Jacobian Gram in these coordinates, C⁺ M' C⁺ᵀ, is 1, and Λ are the eigenvalues of G M', whatever coordinates f came in.
`local` looks to the next hook point, `next-k` to the k-th behind, `global` to the last.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.degeneracy.basis import Basis, principal_components, sorted_by_strength, varying
from crux.degeneracy.grams import Moments, Target, check_data, check_order, jacobian_gram, moments
from crux.degeneracy.networks.network import Network


def basis_name(ahead: int | None) -> str:
    """Return the name of the interaction basis that looks so many hook points ahead; None: to the last one."""
    return "global" if ahead is None else "local" if ahead == 1 else f"next-{ahead}"


def interaction_bases(
    network: Network,
    batches: Sequence[Tensor],
    *,
    hooks: Sequence[str],
    ahead: int | None,
    last: Basis | None,
    probes: int | None,
    threshold: float,
    seed: int,
) -> list[Basis]:
    """A basis at each of the hook points, built from the last one backwards.

    Args:
        hooks: in the network's order.
        ahead: how many hook points of these the Jacobian reaches: 1 the local basis, k the next-k, None the global one.
        last: the basis at the last hook point; its principal components where not given.
        probes: see `jacobian_gram`.
        threshold: directions with less than so much of the largest eigenvalue, of G and then of R⁺ M' R⁺ᵀ, are left out.

    Raises:
        UserError: no data; hook points that do not exist or not in this order; a hook point where nothing varies, or on which nothing
            hangs, so that its basis would be empty.
    """
    check_data(batches)
    check_order(network, hooks)
    if len(hooks) < 2:
        raise UserError(f"hook points {', '.join(hooks) or 'none'}: an interaction basis needs two or more")
    if ahead is not None and ahead < 1:
        raise UserError(f"ahead={ahead}: must be 1 or more, or null for the last hook point")
    found = moments(network, batches, hooks=hooks)
    bases = [last or principal_components(hooks[-1], found[hooks[-1]], threshold=threshold)]
    assert bases[0].hook == hooks[-1]
    for hook in reversed(hooks[:-1]):
        further = bases[-1 if ahead is None else min(ahead, len(bases)) - 1]
        M = jacobian_gram(
            network, batches, start=hook, targets=[Target(further.hook, further.C)], probes=probes, seed=seed
        )
        bases.insert(0, interaction_basis(hook, basis_name(ahead), found[hook], M, threshold=threshold))
    return bases


def interaction_basis(hook: str, name: str, moments: Moments, M: Float[Tensor, "d d"], *, threshold: float) -> Basis:
    """The basis at one hook point from its moments and the Jacobian Gram M'.

    Raises:
        UserError: nothing varies there, or nothing depends on what does.
    """
    D, U, dropped = varying(hook, moments, threshold=threshold)
    R, R_pinv = U / D.sqrt(), (U * D.sqrt()).T
    inner = R_pinv @ M @ R_pinv.T
    strength, V = torch.linalg.eigh((inner + inner.T) / 2)
    strength, V = strength.flip(0).clamp(min=0), V.flip(1)
    if not strength[0] > torch.finfo(M.dtype).eps * D[0] * M.trace():
        raise UserError(f"{hook}: an empty basis, nothing at the later hook point depends on what varies here")
    keep = strength > threshold * strength[0]
    unused = float(strength[~keep].sum() / strength.sum())
    strength, V = strength[keep], V[:, keep]
    C = R @ V * strength.sqrt()
    C_pinv = (V / strength.sqrt()).T @ R_pinv
    return sorted_by_strength(Basis(hook, name, moments.mean, C, C_pinv, strength, dropped, unused))
