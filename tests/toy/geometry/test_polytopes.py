"""The dimensionality of each shape (docs/reference/toy_models.md §4.4), to 1e-6 for exact weights."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from crux.toy.geometry.dimensionality import column_rank, dimensionality
from crux.toy.geometry.polytopes import (
    THOMSON_COS2,
    TIGHT_COS2,
    bipyramid,
    collinear_features,
    dedicated_feature,
    digon,
    known_shapes,
    octahedron,
    polygon,
    simplex,
    square_antiprism,
    tegum_product,
)

CASES: list[tuple[str, Tensor, list[float]]] = [
    ("dedicated", dedicated_feature(), [1]),
    ("digon", digon(), [1 / 2] * 2),
    ("triangle", polygon(3), [2 / 3] * 3),
    ("tetrahedron", simplex(3), [3 / 4] * 4),
    ("square", polygon(4), [1 / 2] * 4),
    ("pentagon", polygon(5), [2 / 5] * 5),
    ("hexagon", polygon(6), [1 / 3] * 6),
    ("heptagon", polygon(7), [2 / 7] * 7),
    ("12-gon", polygon(12), [1 / 6] * 12),
    ("1-simplex", simplex(1), [1 / 2] * 2),
    ("2-simplex", simplex(2), [2 / 3] * 3),
    ("9-simplex", simplex(9), [9 / 10] * 10),
    ("square antiprism", square_antiprism(TIGHT_COS2), [3 / 8] * 8),
    ("Thomson antiprism", square_antiprism(THOMSON_COS2), [0.374376] * 8),
    ("triangular bipyramid", bipyramid(3), [2 / 3] * 3 + [1 / 2] * 2),
    ("pentagonal bipyramid", bipyramid(5), [2 / 5] * 5 + [1 / 2] * 2),
    ("octahedron", octahedron(), [1 / 2] * 6),
    ("4 collinear", collinear_features(4), [1 / 4] * 4),
    ("product", tegum_product(polygon(5), simplex(3)), [2 / 5] * 5 + [3 / 4] * 4),
]


@pytest.mark.parametrize(("W", "exact"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_dimensionality_of_exact_weights(W: Tensor, exact: list[float]) -> None:
    assert W.dtype == torch.float64
    torch.testing.assert_close(W.norm(dim=0), torch.ones(len(exact)).double(), atol=1e-14, rtol=0)
    assert dimensionality(W).tolist() == pytest.approx(exact, abs=1e-6)
    assert column_rank(W) == len(W)


@pytest.mark.parametrize("m", [1, 2, 3, 7])
def test_a_simplex_has_equal_angles(m: int) -> None:
    W = simplex(m)
    torch.testing.assert_close(W.T @ W, (1 + 1 / m) * torch.eye(m + 1) - torch.full((m + 1, m + 1), 1 / m).double())


def test_the_thomson_antiprism_is_the_minimum_of_the_coulomb_energy() -> None:
    """Eight charges on a sphere: 19.675287861 is the published minimum (Thomson problem, N = 8)."""

    def energy(cos2: float) -> float:
        W = square_antiprism(cos2)
        return sum(float(1 / (W[:, i] - W[:, j]).norm()) for i, j in combinations(range(8), 2))

    assert energy(THOMSON_COS2) == pytest.approx(19.675287861, abs=1e-9)
    assert energy(THOMSON_COS2) < min(energy(THOMSON_COS2 - 1e-4), energy(THOMSON_COS2 + 1e-4))
    assert energy(THOMSON_COS2) < energy(TIGHT_COS2)


def test_known_shapes_of_n_vectors() -> None:
    assert {n: list(known_shapes(n)) for n in range(2, 10)} == {
        2: ["digon"],
        3: ["triangle"],
        4: ["tetrahedron", "square"],
        5: ["4-simplex", "pentagon", "triangular bipyramid"],
        6: ["5-simplex", "hexagon", "octahedron"],
        7: ["6-simplex", "heptagon", "pentagonal bipyramid"],
        8: ["7-simplex", "octagon", "square antiprism"],
        9: ["8-simplex", "9-gon"],
    }
