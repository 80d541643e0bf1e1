"""What the figures of bases show is read back from their axes."""

import numpy as np

from crux.degeneracy.figures.bases import ablation_curves, spectra


def test_spectra_are_shares_of_the_largest() -> None:
    figure = spectra({"a": {"pca": [4.0, 2.0], "next-3": [9.0, 3.0, 0.0]}, "b": {"pca": [1.0]}})
    first, second = figure.axes
    assert [line.get_label() for line in first.lines] == ["pca", "next-3"]
    np.testing.assert_allclose(np.asarray(first.lines[0].get_ydata()), [1, 0.5])
    np.testing.assert_allclose(np.asarray(first.lines[1].get_ydata()), [1, 1 / 3, 0])
    assert second.lines[0].get_color() == first.lines[0].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["pca", "next-3"]


def test_ablation_curves_show_what_is_allowed() -> None:
    figure = ablation_curves(
        {"a → b": {"local": {0: 3.0, 1: 2.0, 8: 1.0}}, "b → c": {"local": {0: 3.0, 2: 1.0}}, "d": {}, "e": {}},
        clean=1.0, within=0.5, kept="edges kept", loss="MSE",
    )  # fmt: skip
    first = figure.axes[0]
    assert first.get_title(loc="left") == "a →\nb"
    np.testing.assert_allclose(np.asarray(first.lines[0].get_xydata()), [[0, 3], [1, 2], [8, 1]])
    assert [line.get_ydata()[0] for line in first.lines[1:]] == [1.0, 1.5]
    assert [axes.get_visible() for axes in figure.axes] == [True] * 4 + [False] * 2
    assert [axes.get_ylabel() for axes in figure.axes[:4]] == ["MSE", "", "", "MSE"]
