"""Tests of the figures of bases."""

import numpy as np

from crux.degeneracy.figures.bases import ablation_curves, basis_spectra
from tests.support.figures import find_panel, find_panels, points


def test_spectra_are_shares_of_the_largest() -> None:
    figure = basis_spectra({"a": {"pca": [4.0, 2.0], "next-3": [9.0, 3.0, 0.0]}, "b": {"pca": [1.0]}})
    first, second = find_panel(figure, title="a"), find_panel(figure, title="b")
    assert [line.get_label() for line in first.lines] == ["pca", "next-3"]
    np.testing.assert_allclose(points(first.lines[0])[:, 1], [1, 0.5])
    np.testing.assert_allclose(points(first.lines[1])[:, 1], [1, 1 / 3, 0])
    assert second.lines[0].get_color() == first.lines[0].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["pca", "next-3"]


def test_ablation_curves_show_the_allowed_loss() -> None:
    figure = ablation_curves(
        {"a → b": {"local": {0: 3.0, 1: 2.0, 8: 1.0}}, "b → c": {"local": {0: 3.0, 2: 1.0}}, "d": {}, "e": {}},
        clean=1.0, within=0.5, kept="edges kept", loss="MSE",
    )  # fmt: skip
    panels = find_panels(figure)
    assert [panel.get_title(loc="left") for panel in panels] == ["a →\nb", "b →\nc", "d", "e"]
    first = find_panel(figure, title="a →\nb")
    np.testing.assert_allclose(points(first.lines[0]), [[0, 3], [1, 2], [8, 1]])
    assert [points(line)[0, 1] for line in first.lines[1:]] == [1.0, 1.5]
    assert [panel.get_ylabel() for panel in panels] == ["MSE", "", "", "MSE"]
