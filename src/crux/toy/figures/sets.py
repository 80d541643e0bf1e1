"""Draw models of features in sets: directions in the plane, coloured by set, or the cosines of all pairs in more dimensions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from crux.plotting import GREY, MARKERS, PALETTE, new_figure, style_axes

COSINE_COLOURS = "RdBu_r"

MAX_PANELS_PER_ROW = 5
"""Number of panels in a row."""


class SetModels(NamedTuple):
    """Models of one size, one panel each."""

    weights: Float[np.ndarray, "panels m n"]
    n_sets: int
    """Number of equal sets of neighbouring features."""
    titles: Sequence[str]


def plot_feature_sets(rows: Sequence[SetModels]) -> Figure:
    """Draw rows of panels for each model size.

    In a plane, each W_i is a point with a line from the origin; the features of a set have one colour and are joined by a dotted line.
    In more dimensions, a panel shows the cosines of all pairs.
    """
    rows = [
        SetModels(row.weights[i : i + MAX_PANELS_PER_ROW], row.n_sets, row.titles[i : i + MAX_PANELS_PER_ROW])
        for row in rows
        for i in range(0, len(row.titles), MAX_PANELS_PER_ROW)
    ]
    columns = max(len(row.titles) for row in rows)
    figure = new_figure(width=0.8 + 2.6 * columns, height=0.7 + 2.75 * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    cosines = ScalarMappable(Normalize(-1, 1), COSINE_COLOURS)
    for panels, row in zip(grid, rows, strict=True):
        flat = row.weights.shape[1] == 2
        for axes, W, title in zip(panels, row.weights, row.titles, strict=False):
            if flat:
                _draw_plane(axes, W, row.n_sets)
            else:
                _draw_cosines(axes, W, row.n_sets)
            axes.set_title(title, loc="left", fontsize=8.5)
        for axes in panels[len(row.titles) :]:
            axes.remove()
        panels[0].set_ylabel("hidden unit 2" if flat else "feature j, by set")
        if not flat:
            figure.colorbar(cosines, ax=panels.tolist(), label=r"cosine $\hat W_i \cdot \hat W_j$")
    most = max(row.n_sets for row in rows)
    keys = [
        Line2D([], [], color=PALETTE[k % len(PALETTE)], marker=MARKERS[k % len(MARKERS)], label=f"set {k + 1}")
        for k in range(most)
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=most, frameon=False)
    return figure


def _draw_plane(axes: Axes, W: np.ndarray, n_sets: int) -> None:
    size = W.shape[1] // n_sets
    axes.axhline(0, color=GREY, linewidth=0.5)
    axes.axvline(0, color=GREY, linewidth=0.5)
    for k in range(n_sets):
        colour, marker = PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)]
        tips = W[:, k * size : (k + 1) * size]
        for x, y in tips.T:
            axes.plot([0, x], [0, y], color=colour, linewidth=1.8)
        axes.plot(*tips, color=colour, linestyle=":", linewidth=1.2, marker=marker, markersize=6)
    style_axes(axes, x="hidden unit 1", y="")
    reach = 1.2 * max(1.0, float(np.abs(W).max()))
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")


def _draw_cosines(axes: Axes, W: np.ndarray, n_sets: int) -> None:
    length = np.linalg.norm(W, axis=0, keepdims=True)
    directions = W / np.where(length > 0, length, 1)
    n = W.shape[1]
    axes.imshow(directions.T @ directions, cmap=COSINE_COLOURS, vmin=-1, vmax=1, extent=(0, n, n, 0))
    for edge in range(n // n_sets, n, n // n_sets):
        axes.axhline(edge, color=GREY, linewidth=0.8)
        axes.axvline(edge, color=GREY, linewidth=0.8)
    style_axes(axes, x="feature i, by set", y="")
    axes.grid(visible=False)
