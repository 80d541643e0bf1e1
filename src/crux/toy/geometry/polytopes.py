"""Regular shapes that features arrange themselves in, as exact unit vectors in float64, one column per vertex.

The docstrings give the dimensionality D of each vertex in brackets. A product of shapes in orthogonal subspaces
(`tegum_product`) keeps the D of its factors.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

GON_NAMES = {3: "triangle", 4: "square", 5: "pentagon", 6: "hexagon", 7: "heptagon", 8: "octagon"}
SIMPLEX_NAMES = {1: "digon", 2: "triangle", 3: "tetrahedron"}

TIGHT_COS2, THOMSON_COS2 = 1 / 3, 0.314089367889201867
"""cos² of the angle between the antiprism's axis and its vertices: for the tight frame, and for the minimal Coulomb energy."""


def dedicated_feature() -> Float[Tensor, "1 1"]:
    """Return one feature that has a dimension to itself (1)."""
    return torch.ones(1, 1, dtype=torch.float64)


def collinear_features(n: int) -> Float[Tensor, "1 {n}"]:
    """Return n features on the same ray (1/n)."""
    return torch.ones(1, n, dtype=torch.float64)


def digon() -> Float[Tensor, "1 2"]:
    """Return two antipodal features (1/2)."""
    return torch.tensor([[1.0, -1.0]], dtype=torch.float64)


def polygon(n: int) -> Float[Tensor, "2 {n}"]:
    """Return the regular n-gon, n ≥ 3 (2/n)."""
    angles = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
    return torch.stack([angles.cos(), angles.sin()])


def simplex(m: int) -> Float[Tensor, "{m} {m}+1"]:
    """Return m + 1 directions in m dimensions with all products −1/m (m/(m+1)): a digon, triangle, tetrahedron and so on."""
    W = torch.zeros(m, m + 1, dtype=torch.float64)
    for k in range(m):  # column k has the rest of its norm on axis k; the later columns balance it
        W[k, k] = (1 - W[:k, k].square().sum()).sqrt()
        W[k, k + 1 :] = -W[k, k] / (m - k)
    return W


def square_antiprism(cos2: float) -> Float[Tensor, "3 8"]:
    """Return two parallel squares, turned by 45° relative to each other; cos2 is cos²θ of the angle θ between axis and vertices.

    D = 1 / (4 (1−cos2)² + 8 cos2²). It is 3/8 for TIGHT_COS2, where the frame is tight, and 0.37438 for THOMSON_COS2, the minimal-energy
    arrangement of eight charges on a sphere (the Thomson problem), which Elhage et al. 2209.10652 draw.
    """
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    side, height = math.sqrt(1 - cos2), math.sqrt(cos2)
    heights = torch.tensor([height, -height] * 4, dtype=torch.float64)
    return torch.stack([side * angles.cos(), side * angles.sin(), heights])


def bipyramid(n: int) -> Float[Tensor, "3 {n}+2"]:
    """Return the n-gon with the two poles (n times 2/n, twice 1/2); its tegum factors are the n-gon and a digon."""
    return tegum_product(polygon(n), digon())


def octahedron() -> Float[Tensor, "3 6"]:
    """Return six features on three axes (1/2); its tegum factors are three digons."""
    return tegum_product(digon(), digon(), digon())


def tegum_product(*factors: Float[Tensor, "_m _n"]) -> Float[Tensor, "_m_all _n_all"]:
    """Return the factors in mutually orthogonal subspaces: block-diagonal columns."""
    return torch.block_diag(*factors)


def known_shapes(n: int) -> dict[str, list[Float[Tensor, "_m {n}"]]]:
    """Return the known arrangements of n ≥ 2 vectors, by name.

    Shapes that are products of smaller ones are included: if noise exceeds the threshold that separates factors, they are found in
    one piece. Collinear vectors are not included, because their signs vary.
    """
    shapes: dict[str, list[Tensor]] = {SIMPLEX_NAMES.get(n - 1, f"{n - 1}-simplex"): [simplex(n - 1)]}
    if n > 3:
        shapes[GON_NAMES.get(n, f"{n}-gon")] = [polygon(n)]
    match n:
        case 5:
            shapes["triangular bipyramid"] = [bipyramid(3)]
        case 6:
            shapes["octahedron"] = [octahedron()]
        case 7:
            shapes["pentagonal bipyramid"] = [bipyramid(5)]
        case 8:
            shapes["square antiprism"] = [square_antiprism(TIGHT_COS2), square_antiprism(THOMSON_COS2)]
        case _:
            pass
    return shapes
