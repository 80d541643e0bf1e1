"""The interaction basis of Bushnaq et al. (2405.10928).

In its coordinates both the activations' covariance and the Jacobian Gram are diagonal.

Bases are built from the last hook point backwards. Let G = E[(f − μ)(f − μ)ᵀ] = U D Uᵀ, R = U D^(-1/2), R⁺ = D^(1/2) Uᵀ, let M' be the
Jacobian Gram into the basis of a later hook point (grams.py), and R⁺ M' R⁺ᵀ = V Λ Vᵀ. Then

    C = R V Λ^(1/2),  C⁺ = Λ^(-1/2) Vᵀ R⁺.

Hence E[f̂ᵀ f̂] = Λ, and the Jacobian Gram in the new coordinates, C⁺ M' C⁺ᵀ, is the identity. Λ are the eigenvalues of G M', which do not
depend on the coordinates in which f is given. The Jacobian of the `local` basis goes to the next hook point, that of `next-k` to
the k-th after it, and that of `global` to the last.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.degeneracy.basis import Basis, pca_basis, sort_by_strength, varying_directions
from crux.degeneracy.grams import Moments, Target, check_data, check_hooks_in_order, jacobian_gram, moments
from crux.degeneracy.networks.network import Network


def basis_name(ahead: int | None) -> str:
    """Return the name of the interaction basis whose Jacobian goes to the hook point this far ahead; None: to the last one."""
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
    """Return one basis per hook point, built from the last hook point backwards.

    Args:
        hooks: names of the hook points, in the network's order.
        ahead: number of hook points (of these) that the Jacobian reaches ahead: 1 gives the local basis, k the next-k basis, None the
            global basis.
        last: the basis at the last hook point; None: its principal components.
        probes: see `jacobian_gram`.
        threshold: directions below this share of the largest eigenvalue, of G and then of R⁺ M' R⁺ᵀ, are left out.

    Raises:
        UserError: if there is no data; if hook points do not exist or are out of order; or if a basis would be empty, because
            nothing varies at its hook point or nothing depends on it.
    """
    check_data(batches)
    check_hooks_in_order(network, hooks)
    if len(hooks) < 2:
        raise UserError(f"hook points {', '.join(hooks) or 'none'}: an interaction basis needs two or more")
    if ahead is not None and ahead < 1:
        raise UserError(f"ahead={ahead}: must be 1 or more, or null for the last hook point")
    moments_at = moments(network, batches, hooks=hooks)
    bases = [last or pca_basis(hooks[-1], moments_at[hooks[-1]], threshold=threshold)]
    assert bases[0].hook == hooks[-1]
    for hook in reversed(hooks[:-1]):
        # `bases` now begins at the next hook point and ends at the last
        later = bases[-1 if ahead is None else min(ahead, len(bases)) - 1]
        M = jacobian_gram(network, batches, start=hook, targets=[Target(later.hook, later.C)], probes=probes, seed=seed)
        bases.insert(0, interaction_basis(hook, basis_name(ahead), moments_at[hook], M, threshold=threshold))
    return bases


def interaction_basis(hook: str, name: str, moments: Moments, M: Float[Tensor, "d d"], *, threshold: float) -> Basis:
    """Return the basis at one hook point, from its moments and the Jacobian Gram M'.

    Raises:
        UserError: if nothing varies there, or nothing depends on the directions that vary.
    """
    D, U, dropped = varying_directions(hook, moments, threshold=threshold)
    R, R_pinv = U / D.sqrt(), (U * D.sqrt()).T
    inner = R_pinv @ M @ R_pinv.T
    strength, V = torch.linalg.eigh((inner + inner.T) / 2)
    strength, V = strength.flip(0).clamp(min=0), V.flip(1)
    if not strength[0] > torch.finfo(M.dtype).eps * D[0] * M.trace():
        raise UserError(
            f"{hook}: the basis is empty, because nothing at the later hook point depends on the directions that vary here"
        )
    keep = strength > threshold * strength[0]
    unused = float(strength[~keep].sum() / strength.sum())
    strength, V = strength[keep], V[:, keep]
    C = R @ V * strength.sqrt()
    C_pinv = (V / strength.sqrt()).T @ R_pinv
    return sort_by_strength(Basis(hook, name, moments.mean, C, C_pinv, strength, dropped, unused))
