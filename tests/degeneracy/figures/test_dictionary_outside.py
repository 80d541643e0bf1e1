"""Test that the figure shows columns, means and the share of a random direction."""

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection

from crux.degeneracy.figures.dictionary_outside import dictionary_outside
from tests.support.figures import find_panel


def test_one_dot_per_latent_and_a_line_for_the_weighted_mean() -> None:
    shares = {"local": np.array([0.9, 0.1, 1.0]), "e2e": np.array([0.2])}
    figure = dictionary_outside(shares, weighted={"local": 0.95, "e2e": 0.2}, chance=0.4, subspace="the output")
    axes = find_panel(figure)
    dots = [np.asarray(c.get_offsets()) for c in axes.collections if isinstance(c, PathCollection)]
    assert [sorted(d[:, 1]) for d in dots] == [[0.1, 0.9, 1.0], [0.2]]
    assert [round(float(d[:, 0].mean())) for d in dots] == [0, 1]
    means = [c.get_segments()[0][:, 1] for c in axes.collections if isinstance(c, LineCollection)]
    assert np.asarray(means) == pytest.approx(np.array([[0.95, 0.95], [0.2, 0.2]]))
    assert np.asarray(axes.lines[0].get_ydata()) == pytest.approx(0.4)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["local", "e2e"]
    assert axes.get_title(loc="left") == "outside of the output"
