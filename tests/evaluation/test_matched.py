"""Interpolation at equal L0, by hand."""

import pytest

from crux.evaluation.matched import Point, ce_increase_at


def test_linear_between_neighbours_and_nothing_outside() -> None:
    points = [Point(40, 0.1), Point(10, 0.4), Point(20, 0.2)]
    assert ce_increase_at(points, l0=15) == pytest.approx(0.3)
    assert ce_increase_at(points, l0=40) == pytest.approx(0.1)
    assert ce_increase_at(points, l0=9.9) is None
    assert ce_increase_at(points, l0=41) is None
    assert ce_increase_at([], l0=10) is None
