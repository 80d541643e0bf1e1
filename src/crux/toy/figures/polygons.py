"""Draw features as points in a two-dimensional hidden space, one panel per model: the first figure of "Toy Models of Superposition"."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from crux.plotting import GREY, new_figure, style_axes

MAX_COLUMNS = 5
IMPORTANCE_COLOURS = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.9, 256)))
"""Without the yellow end, which is hard to see on white."""


def plot_polygons(
    weights: Float[np.ndarray, "panels 2 n"], *, importances: Float[np.ndarray, "n"], titles: Sequence[str]
) -> Figure:
    """Draw each column W_i as a point with a line from the origin, coloured by its importance; all panels have the same scale.

    Args:
        weights: in canonical orientation (`crux.toy.geometry.report.orient_canonically`), so that panels can be compared.
        titles: one per panel, for example from `density_title`.
    """
    rows, columns = -(-len(weights) // MAX_COLUMNS), min(len(weights), MAX_COLUMNS)
    figure = new_figure(width=1.2 + 2.1 * columns, height=0.6 + 2.3 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    reach = 1.15 * max(1.0, float(np.abs(weights).max()))
    low, high = float(importances.min()), float(importances.max())
    shades = Normalize(low - (high == low), high)
    for n, (axes, W, title) in enumerate(zip(grid.flat, weights, titles, strict=False)):
        _draw_features(axes, W, importances, shades)
        style_axes(axes, x="", y="")
        axes.set_title(title, loc="left", fontsize=9)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        if n + columns >= len(weights):
            axes.set_xlabel("hidden unit 1")
            axes.tick_params(labelbottom=True)
        if n % columns == 0:
            axes.set_ylabel("hidden unit 2")
    for axes in grid.flat[len(weights) :]:
        axes.remove()
    if high > low:
        models = list(figure.axes)
        figure.colorbar(models[0].collections[-1], ax=models, label="importance of the feature", aspect=30)
    return figure


def density_title(density: float) -> str:
    """Return a title such as "density 0.05 (95 % sparse)": the share of inputs in which a feature is active, and S in per cent."""
    sparsity = 100 * (1 - density)
    return f"density {density:.2g} ({sparsity:.{2 if sparsity < 99 else 3}g} % sparse)"


def _draw_features(axes: Axes, W: np.ndarray, importances: np.ndarray, shades: Normalize) -> None:
    axes.axhline(0, color=GREY, linewidth=0.5)
    axes.axvline(0, color=GREY, linewidth=0.5)
    rays = LineCollection([np.array([[0, 0], tip]) for tip in W.T], cmap=IMPORTANCE_COLOURS, norm=shades, linewidth=1.6)
    rays.set_array(importances)
    axes.add_collection(rays)
    axes.scatter(*W, c=importances, cmap=IMPORTANCE_COLOURS, norm=shades, s=26, zorder=3)
