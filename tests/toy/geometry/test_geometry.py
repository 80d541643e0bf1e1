import json

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from crux.config.errors import UserError
from crux.toy.geometry.polytopes import dedicated_feature, digon, polygon, simplex, tegum_product
from crux.toy.geometry.report import Geometry, geometry_report, orient_canonically


def report_geometry(W: Tensor) -> Geometry:
    return geometry_report(W, living=0.1, tau=0.15, tolerance=0.15)


def draw_rotation(m: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(m, m, generator=torch.Generator().manual_seed(seed)).double()).Q


def build_two_digons_a_pentagon_and_a_dead_feature() -> Tensor:
    W = tegum_product(digon(), polygon(5), digon())
    return draw_rotation(5, 0)[:, :4] @ torch.cat([W, torch.zeros(4, 1)], dim=1)


def test_the_report_of_known_weights() -> None:
    geometry = report_geometry(build_two_digons_a_pentagon_and_a_dead_feature())
    assert [(f.name, f.features, f.rank) for f in geometry.factors] == [
        ("digon", (0, 1), 1),
        ("pentagon", (2, 3, 4, 5, 6), 2),
        ("digon", (7, 8), 1),
    ]
    assert geometry.names == {"digon": 2, "pentagon": 1}
    assert geometry.living == tuple(range(9))
    assert geometry.dimensionality.tolist() == pytest.approx([0.5] * 2 + [0.4] * 5 + [0.5] * 2 + [0], abs=1e-6)
    assert geometry.norms.tolist() == pytest.approx([1] * 9 + [0])
    assert (geometry.n_hidden, geometry.n_features, geometry.rank) == (5, 10, 4)
    assert [f.dimensions for f in geometry.factors] == pytest.approx([1, 2, 1])
    assert geometry.total == pytest.approx(4)
    assert geometry.unused == pytest.approx(0, abs=1e-9)
    assert geometry.dimensions_per_feature == pytest.approx(5 / 9)
    assert geometry.lawful


def test_str_of_the_report_has_a_row_per_shape() -> None:
    text = str(report_geometry(build_two_digons_a_pentagon_and_a_dead_feature()))
    assert "10 features in 5 dimensions, 9 of them represented" in text
    assert "W has rank 4. The dimensionalities sum to Σ D_i = 4.0000 ≤ 4, as it must be" in text
    assert "| digon | 2 | 4 | 2 | 2.000 | 0.500 | (0 1) (7 8) |" in text.splitlines()
    assert "| pentagon | 1 | 5 | 2 | 2.000 | 0.400 | (2 3 4 5 6) |" in text.splitlines()


def test_report_can_be_written_as_json() -> None:
    geometry = report_geometry(build_two_digons_a_pentagon_and_a_dead_feature())
    plain = json.loads(json.dumps(geometry.as_dict(), allow_nan=False))
    assert plain == geometry.as_dict()
    assert set(plain) == set(Geometry._fields)
    assert plain["factors"][1]["features"] == [2, 3, 4, 5, 6]


def test_report_of_zero_weights() -> None:
    geometry = report_geometry(torch.zeros(2, 5))
    assert geometry.lawful
    assert (geometry.factors, geometry.total, geometry.rank) == ((), 0, 0)
    assert geometry.as_dict()["dimensions_per_feature"] is None
    assert "0 of them represented" in str(geometry)


def test_non_finite_weights_are_rejected() -> None:
    with pytest.raises(UserError, match="not finite"):
        report_geometry(torch.tensor([[1.0, float("nan")]]))


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 8), st.integers(0, 10**6))
def test_report_is_consistent_for_any_weights(m: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(m, n, generator=generator) * torch.rand(n, generator=generator).gt(0.3)
    geometry = report_geometry(W)
    assert geometry.lawful
    assert geometry.total <= geometry.rank + 1e-5
    assert sorted(i for f in geometry.factors for i in f.features) == list(geometry.living)
    assert all(f.dimensions <= len(f.features) for f in geometry.factors)
    assert sum(geometry.names.values()) == len(geometry.factors)
    str(geometry)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 8), st.integers(0, 10**6), st.booleans())
@example(m=5, n=4, seed=3, low=True)  # a faint feature leaves the span of the living ones
def test_canonical_weights_do_not_depend_on_the_rotation(m: int, n: int, seed: int, low: bool) -> None:
    W = torch.randn(m, n, generator=torch.Generator().manual_seed(seed)).double()
    if low and m > 1:  # the features span fewer dimensions than W has
        W[-1] = 0
    turned = orient_canonically(W, living=0.1)
    torch.testing.assert_close(turned.T @ turned, W.T @ W)
    reflection = torch.ones(m).double()
    reflection[0] = -1
    for Q in (draw_rotation(m, seed + 1), draw_rotation(m, seed + 1) * reflection):
        torch.testing.assert_close(orient_canonically(Q @ W, living=0.1), turned, atol=1e-7, rtol=0)


def test_canonical_puts_the_first_living_feature_on_x_and_the_next_above_it() -> None:
    W = tegum_product(digon(), digon())[:, [0, 1, 3, 2]]  # feature 1 is on the line of feature 0 and gets no axis
    W = torch.cat([torch.zeros(2, 1), W], dim=1)  # a dead feature in front of them
    expected = torch.tensor([[0.0, 1, -1, 0, 0], [0, 0, 0, 1, -1]]).double()
    torch.testing.assert_close(orient_canonically(draw_rotation(2, 3) @ W, living=0.1), expected)
    solid = orient_canonically(draw_rotation(3, 4) @ simplex(3), living=0.1)
    torch.testing.assert_close(solid[:, 0], torch.tensor([1.0, 0, 0]).double())
    assert solid[1, 1] > 0
    assert abs(solid[2, 1]) < 1e-9
    assert solid[2, 2] > 0


def test_canonical_orientation_with_a_faint_first_feature_and_nearly_collinear_ones() -> None:
    expected = torch.tensor([[0.003, 1, 1, -1], [-0.004, 0, 0.05, 0.02]]).double()
    for seed in range(4):
        torch.testing.assert_close(orient_canonically(draw_rotation(2, seed) @ expected, living=0.1), expected)


def test_canonical_orientation_of_zero_weights_is_zero() -> None:
    torch.testing.assert_close(orient_canonically(torch.zeros(3, 4), living=0.1), torch.zeros(3, 4))
    assert orient_canonically(dedicated_feature().float(), living=0.1).dtype == torch.float32
