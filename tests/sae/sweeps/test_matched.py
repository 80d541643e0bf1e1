"""Interpolation at equal L0 and the interval of a ratio, by hand."""

import math
from itertools import product

import numpy as np
import pytest

from crux.sae.sweeps.matched import interpolate_at_l0, ratio_of_means


def test_interpolation_is_linear_and_undefined_outside() -> None:
    points = [40, 10, 20], [0.1, 0.4, 0.2]
    assert interpolate_at_l0(*points, l0=15) == pytest.approx(0.3)
    assert interpolate_at_l0(*points, l0=40) == pytest.approx(0.1)
    assert math.isnan(interpolate_at_l0(*points, l0=9.9))
    assert math.isnan(interpolate_at_l0(*points, l0=41))
    assert math.isnan(interpolate_at_l0([], [], l0=10))


def test_a_ratio_is_between_means_and_its_range_between_seeds() -> None:
    found = ratio_of_means([1.0, 3.0], [2.0, 3.0])
    assert found.of_means == pytest.approx(4 / 5)
    assert (found.lowest, found.highest) == (0.5, 1.0)
    assert found.interval is None


def test_the_interval_is_that_of_all_resamples() -> None:
    """Five seeds have 5⁵ resamples; their percentiles agree with those of the drawn resamples within the sampling error."""
    above, below = np.array([1.0, 2.0, 3.0, 4.0, 10.0]), np.array([2.0, 3.0, 4.0, 4.0, 5.0])
    resamples = [list(seeds) for seeds in product(range(5), repeat=5)]
    ratios = [above[seeds].mean() / below[seeds].mean() for seeds in resamples]
    low, high = np.percentile(ratios, [2.5, 97.5])
    found = ratio_of_means(above.tolist(), below.tolist())
    assert found.interval == pytest.approx((low, high), abs=0.02)
    assert found == ratio_of_means(above.tolist(), below.tolist()), "the resamples are drawn with a fixed seed"
    assert ratio_of_means([2.0] * 5, [4.0] * 5).interval == (0.5, 0.5)
