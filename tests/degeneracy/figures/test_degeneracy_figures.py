"""Figures of spectra, of synchronised neurons and of grokking: what they are given stands in them."""

import numpy as np
import pytest

from crux.degeneracy.figures.grokking import grokking
from crux.degeneracy.figures.spectra import gram_spectra
from crux.degeneracy.figures.synchronised import synchronised_neurons


def test_spectra_are_shares_of_the_largest() -> None:
    g = {"a": np.array([8.0, 4.0, 0.0]), "b": np.array([2.0, 1.0])}
    k = {"b": np.array([0.0, 0.0])}
    figure = gram_spectra(g, k, thresholds=[0.1, 1e-3])
    left, right = figure.axes
    a, b = left.get_lines()[:2]
    np.testing.assert_allclose(np.asarray(a.get_ydata()), [1, 0.5, 1e-6])
    np.testing.assert_allclose(np.asarray(b.get_ydata()), [1, 0.5])
    assert a.get_color() is not b.get_color()
    assert [line.get_ydata()[0] for line in left.get_lines()[2:]] == [0.1, 1e-3]
    assert np.asarray(right.get_lines()[0].get_ydata()).max() < 1e-5
    assert left.get_ylim()[0] == pytest.approx(1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_merged_losses_stand_over_the_gates_that_are_left(scale: float) -> None:
    gates, loss, chance = [1.0, 0.97, 0.5], [0.1, 0.11, 0.2], [0.1, 0.3, 0.5 * scale]
    nearest = {"post0": np.array([0.3, 0.1]), "post1": np.zeros(0)}
    figure = synchronised_neurons(nearest, thresholds=[1e-6, 0.01, 0.4], gates=gates, loss=loss, chance=chance, own=0.1)
    left, right = figure.axes
    assert list(left.get_lines()[0].get_xdata()) == [0.1, 0.3]
    by_distance, by_chance, own = right.get_lines()
    assert (list(by_distance.get_xdata()), list(by_distance.get_ydata())) == (gates, loss)
    assert list(by_chance.get_ydata()) == chance
    assert own.get_ydata()[0] == 0.1
    assert [text.get_text() for text in right.texts] == ["0.4"]  # 0.97 lies too near to 1 for a number
    assert right.get_xlim()[0] > right.get_xlim()[1]
    figure.canvas.draw()


def test_grokking_shows_both_losses() -> None:
    above, below = grokking([100, 200], [1.0, 1e-7], [2.0, 3.0], [0.1, 0.2]).axes
    assert [list(line.get_ydata()) for line in above.get_lines()] == [[1.0, 1e-7], [2.0, 3.0]]
    assert list(below.get_lines()[0].get_ydata()) == [0.1, 0.2]
    assert above.get_yscale() == "log"
