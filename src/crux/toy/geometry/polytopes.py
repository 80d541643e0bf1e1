"""The solids that features arrange themselves in, as exact unit vectors: one column a vertex, float64.

In brackets the dimensionality D of each vertex. Products of solids in orthogonal subspaces (`tegum_product`) keep the D of their factors.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

GON_NAMES = {3: "triangle", 4: "square", 5: "pentagon", 6: "hexagon", 7: "heptagon", 8: "octagon"}
SIMPLEX_NAMES = {1: "digon", 2: "triangle", 3: "tetrahedron"}

TIGHT_COS2, THOMSON_COS2 = 1 / 3, 0.314089367889201867
"""cos² of the angle between the antiprism's axis and its vertices: of the tight frame, and of the Coulomb energy's minimum."""


def dedicated() -> Float[Tensor, "1 1"]:
    """One feature with a dimension to itself (1)."""
    return torch.ones(1, 1, dtype=torch.float64)


def collinear(n: int) -> Float[Tensor, "1 {n}"]:
    """n features on the same ray (1/n)."""
    return torch.ones(1, n, dtype=torch.float64)


def digon() -> Float[Tensor, "1 2"]:
    """Two antipodal features (1/2)."""
    return torch.tensor([[1.0, -1.0]], dtype=torch.float64)


def polygon(n: int) -> Float[Tensor, "2 {n}"]:
    """The regular n-gon, n ≥ 3 (2/n)."""
    angles = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
    return torch.stack([angles.cos(), angles.sin()])


def simplex(m: int) -> Float[Tensor, "{m} {m}+1"]:
    """m + 1 directions in m dimensions with equal angles, all products −1/m (m/(m+1)): digon, triangle, tetrahedron, …"""
    W = torch.zeros(m, m + 1, dtype=torch.float64)
    for k in range(m):  # column k has what is left of its norm on axis k; the later ones balance it
        W[k, k] = (1 - W[:k, k].square().sum()).sqrt()
        W[k, k + 1 :] = -W[k, k] / (m - k)
    return W


def square_antiprism(cos2: float) -> Float[Tensor, "3 8"]:
    """Two squares, one above the other and turned by 45°; cos2 is cos²θ of the angle θ between axis and vertices.

    D = 1 / (4 (1−cos2)² + 8 cos2²): 3/8 for TIGHT_COS2, where the frame is tight, and .37438 for THOMSON_COS2, the
    arrangement of eight charges on a sphere (N = 8 of the Thomson problem), which Elhage et al. draw.
    """
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    side, height = math.sqrt(1 - cos2), math.sqrt(cos2)
    heights = torch.tensor([height, -height] * 4, dtype=torch.float64)
    return torch.stack([side * angles.cos(), side * angles.sin(), heights])


def bipyramid(n: int) -> Float[Tensor, "3 {n}+2"]:
    """n-gon and the two poles (n times 2/n, twice 1/2): falls into the factors n-gon and digon."""
    return tegum_product(polygon(n), digon())


def octahedron() -> Float[Tensor, "3 6"]:
    """Six features on three axes (1/2): falls into three digons."""
    return tegum_product(digon(), digon(), digon())


def tegum_product(*factors: Float[Tensor, "_m _n"]) -> Float[Tensor, "_m_all _n_all"]:
    """Each factor in a subspace of its own, orthogonal to the others: block-diagonal columns."""
    return torch.block_diag(*factors)


def known(n: int) -> dict[str, list[Float[Tensor, "_m {n}"]]]:
    """Name → the arrangements of n ≥ 2 vectors that go by it.

    Those that fall into factors are among them: they stay in one piece where the noise is above the threshold that separates factors.
    The collinear are not: their signs vary.
    """
    found: dict[str, list[Tensor]] = {SIMPLEX_NAMES.get(n - 1, f"{n - 1}-simplex"): [simplex(n - 1)]}
    if n > 3:
        found[GON_NAMES.get(n, f"{n}-gon")] = [polygon(n)]
    match n:
        case 5:
            found["triangular bipyramid"] = [bipyramid(3)]
        case 6:
            found["octahedron"] = [octahedron()]
        case 7:
            found["pentagonal bipyramid"] = [bipyramid(5)]
        case 8:
            found["square antiprism"] = [square_antiprism(TIGHT_COS2), square_antiprism(THOMSON_COS2)]
        case _:
            pass
    return found
