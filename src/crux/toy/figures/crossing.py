"""Draw the losses of local optima against one feature's density: the best geometry, and the density at which it changes."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from crux.plotting import BLUE, GREY, MARKERS, PALETTE, VERMILION, new_figure, style_axes


def plot_crossing(
    branches: Mapping[str, Mapping[float, float]],
    *,
    exact: Mapping[float, float],
    crossing: float,
    density: float,
    weights: Mapping[float, Float[np.ndarray, "2 n"]],
) -> Figure:
    """Draw loss against density ratio, one line per geometry; below, the best geometry at some ratios, with the varied feature in red.

    Args:
        branches: geometry → density ratio → lowest loss of the restarts that ended with this geometry.
        exact: density ratio → the loss of the best exact optimum.
        crossing: the ratio of the vertical line; NaN: no line.
        density: of the other features.
        weights: density ratio → W, with the varied feature last.
    """
    figure = new_figure(width=10, height=7)
    parts = figure.subfigures(2, 1, height_ratios=[1.7, 1], squeeze=False)[:, 0]
    axes = parts[0].subplots()
    line = np.array(sorted(exact.items())).T
    axes.plot(*line, color="#cccccc", linewidth=6, label="best exact optimum", zorder=1)
    for k, (name, losses) in enumerate(branches.items()):
        line = np.array(sorted(losses.items())).T
        axes.plot(*line, color=PALETTE[k % 6], marker=MARKERS[k % 6], ms=4.5, label=name)
    if np.isfinite(crossing):
        axes.axvline(crossing, color=GREY, linewidth=0.9, linestyle="--")
        text = f" {1 / crossing:.2f} times sparser"
        axes.annotate(text, (crossing, 0.02), xycoords=("data", "axes fraction"), color=GREY, fontsize=9)
    ratio_label = f"density of the varied feature / density of the others ({density:g})"
    style_axes(axes, x=ratio_label, y="exact loss, summed over features")
    axes.set(xscale="log", yscale="log")
    _write_ticks_plainly(axes.xaxis)
    _write_ticks_plainly(axes.yaxis)
    axes.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.01, 1), title="restarts that ended as")
    row = parts[1].subplots(1, len(weights), squeeze=False, sharey=True)[0]
    for panel, (ratio, W) in zip(row, weights.items(), strict=True):
        _draw_plane(panel, W, f"ratio {ratio:.2g}")
    row[0].set_ylabel("hidden unit 2")
    return figure


def _draw_plane(axes: Axes, W: np.ndarray, title: str) -> None:
    last = W.shape[1] - 1
    for i, (x, y) in enumerate(W.T):
        colour = VERMILION if i == last else BLUE
        axes.plot([0, x], [0, y], color=colour, linewidth=1.6)
        axes.plot(x, y, color=colour, marker="s" if i == last else "o", markersize=5)
    style_axes(axes, x="hidden unit 1", y="", title=title)
    axes.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1))


def _write_ticks_plainly(axis: Axis) -> None:
    """Put ticks at 1, 2, 5 times powers of ten, labelled without exponents."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
