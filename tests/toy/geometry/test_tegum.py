"""Every shape is found and named if it is rotated, noisy, scaled, shuffled and mixed with other shapes."""

import pytest
import torch
from torch import Tensor

from crux.toy.geometry.polytopes import (
    THOMSON_COS2,
    TIGHT_COS2,
    bipyramid,
    collinear_features,
    dedicated_feature,
    digon,
    octahedron,
    polygon,
    simplex,
    square_antiprism,
    tegum_product,
)
from crux.toy.geometry.tegum import Factor, name_shape, tegum_factors

SHAPES: dict[str, tuple[Tensor, list[str]]] = {
    "dedicated": (dedicated_feature(), ["dedicated"]),
    "digon": (digon(), ["digon"]),
    "triangle": (polygon(3), ["triangle"]),
    "tetrahedron": (simplex(3), ["tetrahedron"]),
    "4-simplex": (simplex(4), ["4-simplex"]),
    "square": (polygon(4), ["digon", "digon"]),  # neighbours are orthogonal: a tegum product as well
    "pentagon": (polygon(5), ["pentagon"]),
    "hexagon": (polygon(6), ["hexagon"]),
    "heptagon": (polygon(7), ["heptagon"]),
    "12-gon": (polygon(12), ["12-gon"]),
    "antiprism": (square_antiprism(TIGHT_COS2), ["square antiprism"]),
    "Thomson antiprism": (square_antiprism(THOMSON_COS2), ["square antiprism"]),
    "triangular bipyramid": (bipyramid(3), ["digon", "triangle"]),
    "pentagonal bipyramid": (bipyramid(5), ["digon", "pentagon"]),
    "octahedron": (octahedron(), ["digon"] * 3),
    "3 collinear": (collinear_features(3), ["3 collinear"]),
    "collinear, one against": (collinear_features(3) * torch.tensor([1.0, -1, 1]), ["3 collinear"]),
    "2 collinear": (collinear_features(2), ["2 collinear"]),
}


def find_factors(W: Tensor) -> tuple[Factor, ...]:
    return tegum_factors(W, living=0.1, tau=0.15, tolerance=0.15)


def draw_rotation(m: int) -> Tensor:
    return torch.linalg.qr(torch.randn(m, m, dtype=torch.float64)).Q


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.02])
def test_shapes_are_named_after_rotation_scaling_shuffling_and_noise(shape: str, noise: float) -> None:
    """The shape is in 12 dimensions together with a pentagon, one dedicated and two dead features.

    Each coordinate has noise of 0, 1 or 2 % of the norm.
    """
    torch.manual_seed(0)
    vertices, names = SHAPES[shape]
    for _ in range(20):
        W = tegum_product(vertices, polygon(5) * 0.8, dedicated_feature() * 1.3)
        W = torch.cat([W, torch.zeros(len(W), 2)], dim=1)
        placed = draw_rotation(12)[:, : len(W)] @ W
        scales = torch.empty(placed.shape[1]).uniform_(0.8, 1.2)
        order = torch.randperm(placed.shape[1])
        noisy = ((placed + noise * torch.randn_like(placed)) * scales)[:, order].float()
        shapes = find_factors(noisy)
        assert sorted(factor.name for factor in shapes) == sorted([*names, "pentagon", "dedicated"])
        groups = {frozenset(factor.features): factor for factor in shapes}
        pentagon = frozenset(torch.argsort(order)[vertices.shape[1] : vertices.shape[1] + 5].tolist())
        assert groups[pentagon].name == "pentagon"
        assert groups[pentagon].rank == 2
        assert groups[pentagon].dimensions == pytest.approx(2, abs=0.1)
        assert sum(factor.rank for factor in shapes) == len(W)


def test_isospectral_shapes_are_distinguished() -> None:
    """Two coinciding triangles have the Gram spectrum of a hexagon; a cube has that of the tight antiprism."""
    pair = torch.cat([polygon(3), polygon(3)], dim=1)
    cube = torch.tensor([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)]).double().T / 3**0.5
    antiprism = square_antiprism(TIGHT_COS2)
    for one, other in ((pair, polygon(6)), (cube, antiprism)):
        torch.testing.assert_close(torch.linalg.eigvalsh(one.T @ one), torch.linalg.eigvalsh(other.T @ other))
    assert [f.name for f in find_factors(pair)] == ["6 vectors in 2 dimensions"]
    assert [f.name for f in find_factors(cube)] == ["8 vectors in 3 dimensions"]


def test_rearranged_products_are_another_shape() -> None:
    """The cosines are those of a pentagon, five times cos 72° and five times cos 144°, but between other pairs of vectors."""
    near, far = (float(torch.cos(torch.deg2rad(torch.tensor(angle)))) for angle in (72.0, 144.0))
    gram = torch.eye(5).double()
    for k, (i, j) in enumerate(torch.triu_indices(5, 5, 1).T.tolist()):
        gram[i, j] = gram[j, i] = near if k < 5 else far
    name, deviation = name_shape(gram, tolerance=0.15)
    assert deviation > 0.15
    assert name.startswith("5 vectors in")


@pytest.mark.parametrize(("degrees", "name"), [(115, "triangle"), (100, "3 vectors in 2 dimensions")])
def test_a_bent_triangle_is_named_only_while_it_resembles_one(degrees: float, name: str) -> None:
    angles = torch.deg2rad(torch.tensor([0.0, degrees, 180 + degrees / 2], dtype=torch.float64))
    (factor,) = find_factors(torch.stack([angles.cos(), angles.sin()]))
    assert factor.name == name
    assert factor.deviation > 0


def test_a_product_shape_joined_by_noise_is_named() -> None:
    for W, name in ((octahedron(), "octahedron"), (bipyramid(5), "pentagonal bipyramid"), (polygon(4), "square")):
        (factor,) = tegum_factors(W + 1e-3, living=0.1, tau=1e-9, tolerance=0.15)
        assert factor.name == name


def test_the_antiprism_that_is_nearer_gives_the_deviation() -> None:
    for cos2 in (TIGHT_COS2, THOMSON_COS2):
        W = square_antiprism(cos2)
        assert name_shape(W.T @ W, tolerance=0.15) == ("square antiprism", pytest.approx(0, abs=1e-12))


def test_dead_features_are_in_no_factor() -> None:
    W = torch.tensor([[1.0, 0.0, 0.05, -1.0], [0.0, 0.0, 0.0, 0.0]])
    (digon,) = find_factors(W)
    assert digon.features == (0, 3)
    assert digon.rank == 1
    assert find_factors(torch.zeros(2, 3)) == ()


def test_a_chain_of_overlaps_is_one_factor() -> None:
    angles = torch.deg2rad(torch.tensor([0.0, 75, 150]))  # |cos| is 0.26 for neighbours, above τ = 0.15
    (factor,) = find_factors(torch.stack([angles.cos(), angles.sin()]))
    assert factor.features == (0, 1, 2)
