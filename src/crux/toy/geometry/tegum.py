"""The tegum factors of a weight matrix: groups of features in orthogonal subspaces, each named by its shape."""

from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crux.toy.geometry.dimensionality import dimensionality, unit_columns
from crux.toy.geometry.polytopes import known


class Factor(NamedTuple):
    """One group of living features, orthogonal to all the others."""

    features: tuple[int, ...]
    """Their columns in W, ascending."""
    name: str
    """As "pentagon", "dedicated", "3 collinear"; "5 vectors in 3 dimensions" where no known shape is near."""
    rank: int
    """Dimensions that they span, up to the tolerance."""
    dimensions: float
    """Σ D_i over the factor: its share of the hidden dimensions, at most its rank."""
    deviation: float
    """How far it is from the nearest known shape (see `name_of`)."""


def tegum_factors(W: Float[Tensor, "m n"], *, living: float, tau: float, tolerance: float) -> tuple[Factor, ...]:
    """Connected components of |Ŵ_i·Ŵ_j| > τ among the living features, in the order of their first features.

    Args:
        W: hidden × features.
        living: a feature lives if its norm is above this share of the largest norm. 0.1 is proposed: dead ones decay far below it.
        tau: 0.15 is proposed, above noise (2 % of the norm in each coordinate moves a product by up to .1) and below what holds a shape
            together: 1/2 or more in a polygon, 1/3 in a tetrahedron and in the antiprism, 1/m in a simplex, whole up to six dimensions.
        tolerance: 0.15 is proposed; see `name_of`.
    """
    W64 = W.detach().double().cpu()
    length = W64.norm(dim=0)
    alive = torch.nonzero(length > living * length.max()).flatten()
    shares = dimensionality(W64)
    directions = unit_columns(W64[:, alive])
    gram = directions.T @ directions
    factors = []
    for group in _components(gram.abs() > tau):
        own = gram[group][:, group]
        name, deviation = name_of(own, tolerance=tolerance)
        features = alive[group]
        spanned = _spanned(own, tolerance=tolerance)
        factors.append(Factor(tuple(features.tolist()), name, spanned, float(shares[features].sum()), deviation))
    return tuple(factors)


def name_of(gram: Float[Tensor, "n n"], *, tolerance: float) -> tuple[str, float]:
    """The known shape whose Gram matrix is nearest to that of n unit vectors, if near enough, and the deviation from it.

    Two invariants under rotation and permutation are compared: the sorted eigenvalues λ and the sorted products off the diagonal g (the
    latter tell a hexagon from two triangles on each other, whose spectra agree). Deviation = max(max |λ − λ'| / max λ', max |g − g'|).
    Within `tolerance` the shape is named. 0.15 allows an angle of 120° to be off by 9°; noise of 2 % of the norm in each coordinate makes
    deviations up to .1; two known shapes of equally many vectors are at least .6 apart, but for the antiprism's two forms (.06).

    Both forms of the antiprism go by one name; vectors on one line by "n collinear" whatever their signs, two antipodal ones by "digon".
    """
    n = len(gram)
    if n == 1:
        return "dedicated", 0.0
    products = _products(gram)
    off_line = float(1 - products.abs().min())
    if off_line <= tolerance:
        return ("digon" if n == 2 and products[0] < 0 else f"{n} collinear"), off_line
    spectrum = torch.linalg.eigvalsh(gram)
    deviation, name = min(
        (max(float((spectrum - eigenvalues).abs().max() / eigenvalues[-1]), float((products - others).abs().max())), name)
        for name, eigenvalues, others in _known_invariants(n)
    )  # fmt: skip
    if deviation <= tolerance:
        return name, deviation
    spanned = _spanned(gram, tolerance=tolerance)
    return f"{n} vectors in {spanned} dimension{'s' if spanned > 1 else ''}", deviation


def _spanned(gram: Tensor, *, tolerance: float) -> int:
    """Singular values of the vectors above `tolerance` × the largest."""
    spectrum = torch.linalg.eigvalsh(gram)
    return int((spectrum > tolerance**2 * spectrum[-1]).sum())


def _products(gram: Tensor) -> Tensor:
    """The entries above the diagonal, ascending."""
    return gram[*torch.triu_indices(len(gram), len(gram), 1)].sort().values


@cache
def _known_invariants(n: int) -> list[tuple[str, Tensor, Tensor]]:
    grams = [(name, W.T @ W) for name, forms in known(n).items() for W in forms]
    return [(name, torch.linalg.eigvalsh(gram), _products(gram)) for name, gram in grams]


def _components(linked: Bool[Tensor, "n n"]) -> list[Tensor]:
    """Members of each connected component, ascending."""
    found, unseen = [], torch.ones(len(linked), dtype=torch.bool)
    for start in range(len(linked)):
        if unseen[start]:
            reached = torch.zeros_like(unseen)
            edge = reached.clone()
            edge[start] = True
            while edge.any():
                reached |= edge
                edge = linked[edge].any(0) & ~reached
            unseen &= ~reached
            found.append(torch.nonzero(reached).flatten())
    return found
