"""Tests that the figures of spectra, synchronised neurons and grokking show their data."""

import numpy as np
import pytest

from crux.degeneracy.figures.grokking import grokking
from crux.degeneracy.figures.spectra import gram_spectra
from crux.degeneracy.figures.synchronised import synchronised_neurons
from tests.support.figures import find_line, find_panel, points


def test_spectra_are_shares_of_the_largest() -> None:
    g = {"a": np.array([8.0, 4.0, 0.0]), "b": np.array([2.0, 1.0])}
    k = {"b": np.array([0.0, 0.0])}
    figure = gram_spectra(g, k, thresholds=[0.1, 1e-3])
    left, right = find_panel(figure, title="activation Gram"), find_panel(figure, title="Jacobian Gram")
    a, b = find_line(left, "a"), find_line(left, "b")
    np.testing.assert_allclose(points(a)[:, 1], [1, 0.5, 1e-6])
    np.testing.assert_allclose(points(b)[:, 1], [1, 0.5])
    assert a.get_color() is not b.get_color()
    assert [points(line)[0, 1] for line in left.lines if line not in (a, b)] == [0.1, 1e-3]
    assert points(find_line(right, "b"))[:, 1].max() < 1e-5
    assert left.get_ylim()[0] == pytest.approx(1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_losses_are_plotted_over_the_share_of_gates_left(scale: float) -> None:
    gates, loss, chance = [1.0, 0.97, 0.5], [0.1, 0.11, 0.2], [0.1, 0.3, 0.5 * scale]
    nearest = {"post0": np.array([0.3, 0.1]), "post1": np.zeros(0)}
    figure = synchronised_neurons(
        nearest, thresholds=[1e-6, 0.01, 0.4], gates=gates, loss=loss, chance=chance, unmodified=0.1
    )
    left, right = find_panel(figure, x="distance to the nearest"), find_panel(figure, x="gates left")
    assert points(find_line(left, "post0"))[:, 0].tolist() == [0.1, 0.3]
    assert points(find_line(right, "blocks by distance")).T.tolist() == [gates, loss]
    assert points(find_line(right, "blocks at random"))[:, 1].tolist() == chance
    assert points(find_line(right, "no gates shared"))[0, 1] == 0.1
    assert [text.get_text() for text in right.texts] == ["0.4"]  # 0.97 is too close to 1 for a label
    assert right.get_xlim()[0] > right.get_xlim()[1]
    figure.canvas.draw()


def test_grokking_shows_both_losses() -> None:
    figure = grokking([100, 200], [1.0, 1e-7], [2.0, 3.0], [0.1, 0.2])
    above, below = find_panel(figure, y="cross-entropy"), find_panel(figure, y="held-out pairs right")
    assert points(find_line(above, "training pairs"))[:, 1].tolist() == [1.0, 1e-7]
    assert points(find_line(above, "held-out pairs"))[:, 1].tolist() == [2.0, 3.0]
    assert [points(line)[:, 1].tolist() for line in below.lines] == [[0.1, 0.2]]
    assert above.get_yscale() == "log"
