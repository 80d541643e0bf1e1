"""The tegum factors of a weight matrix: groups of features in orthogonal subspaces, each named by its shape."""

from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crux.toy.geometry.dimensionality import dimensionality, unit_columns
from crux.toy.geometry.polytopes import known_shapes


class Factor(NamedTuple):
    """A group of living features that is orthogonal to all other groups."""

    features: tuple[int, ...]
    """The columns of W, ascending."""
    name: str
    """For example "pentagon", "dedicated" or "3 collinear"; "5 vectors in 3 dimensions" if no known shape is near."""
    rank: int
    """Number of dimensions that the features span, up to the tolerance."""
    dimensions: float
    """Σ D_i over the features: the number of hidden dimensions that the factor takes up, at most its rank."""
    deviation: float
    """Distance from the nearest known shape (see `name_shape`)."""


def tegum_factors(W: Float[Tensor, "m n"], *, living: float, tau: float, tolerance: float) -> tuple[Factor, ...]:
    """Return the connected components of |Ŵ_i·Ŵ_j| > τ among the living features, ordered by their first features.

    Args:
        W: hidden × features.
        living: a feature is living if its norm is above this share of the largest norm. Use 0.1: dead features decay far below it.
        tau: use 0.15. It is above noise (noise of 2 % of the norm in each coordinate moves a product by up to 0.1), and below the
            products within a shape: at least 1/2 in a polygon, 1/3 in a tetrahedron and in the antiprism, 1/m in a simplex, so
            that simplices of up to six dimensions stay in one piece.
        tolerance: use 0.15; see `name_shape`.
    """
    W64 = W.detach().double().cpu()
    length = W64.norm(dim=0)
    alive = torch.nonzero(length > living * length.max()).flatten()
    shares = dimensionality(W64)
    directions = unit_columns(W64[:, alive])
    gram = directions.T @ directions
    factors = []
    for group in _connected_components(gram.abs() > tau):
        group_gram = gram[group][:, group]
        name, deviation = name_shape(group_gram, tolerance=tolerance)
        features = alive[group]
        rank = _spanned_dimensions(group_gram, tolerance=tolerance)
        factors.append(Factor(tuple(features.tolist()), name, rank, float(shares[features].sum()), deviation))
    return tuple(factors)


def name_shape(gram: Float[Tensor, "n n"], *, tolerance: float) -> tuple[str, float]:
    """Return the name of the known shape that n unit vectors with this Gram matrix are nearest to, and the deviation from it.

    Two invariants under rotation and permutation are compared: the sorted eigenvalues λ, and the sorted off-diagonal products g. (Only
    the products distinguish a hexagon from two coinciding triangles, which have the same spectrum.)
    Deviation = max(max |λ − λ'| / max λ', max |g − g'|). The shape is named if the deviation is within `tolerance`. The value 0.15 allows
    an angle of 120° to be off by 9°; noise of 2 % of the norm in each coordinate gives deviations of up to 0.1; any two known shapes of
    equally many vectors differ by at least 0.6, except for the two forms of the antiprism (0.06), which share one name.

    Vectors on one line are named "n collinear" whatever their signs, except for "digon" for two antipodal ones.
    """
    n = len(gram)
    if n == 1:
        return "dedicated", 0.0
    products = _sorted_products(gram)
    from_line = float(1 - products.abs().min())  # 0 if all vectors are on one line
    if from_line <= tolerance:
        return ("digon" if n == 2 and products[0] < 0 else f"{n} collinear"), from_line
    spectrum = torch.linalg.eigvalsh(gram)
    deviation, name = min(
        (max(float((spectrum - eigenvalues).abs().max() / eigenvalues[-1]), float((products - others).abs().max())), name)
        for name, eigenvalues, others in _known_invariants(n)
    )  # fmt: skip
    if deviation <= tolerance:
        return name, deviation
    rank = _spanned_dimensions(gram, tolerance=tolerance)
    return f"{n} vectors in {rank} dimension{'s' if rank > 1 else ''}", deviation


def _spanned_dimensions(gram: Tensor, *, tolerance: float) -> int:
    """Count the singular values of the vectors above `tolerance` × the largest."""
    spectrum = torch.linalg.eigvalsh(gram)
    return int((spectrum > tolerance**2 * spectrum[-1]).sum())


def _sorted_products(gram: Tensor) -> Tensor:
    """Return the entries above the diagonal in ascending order."""
    return gram[*torch.triu_indices(len(gram), len(gram), 1)].sort().values


@cache
def _known_invariants(n: int) -> list[tuple[str, Tensor, Tensor]]:
    """Return (name, eigenvalues, sorted products) of each known shape of n vectors."""
    grams = [(name, W.T @ W) for name, forms in known_shapes(n).items() for W in forms]
    return [(name, torch.linalg.eigvalsh(gram), _sorted_products(gram)) for name, gram in grams]


def _connected_components(linked: Bool[Tensor, "n n"]) -> list[Tensor]:
    """Return the members of each connected component in ascending order."""
    components, unseen = [], torch.ones(len(linked), dtype=torch.bool)
    for start in range(len(linked)):
        if unseen[start]:
            members = torch.zeros_like(unseen)
            newest = members.clone()
            newest[start] = True
            while newest.any():
                members |= newest
                newest = linked[newest].any(0) & ~members
            unseen &= ~members
            components.append(torch.nonzero(members).flatten())
    return components
