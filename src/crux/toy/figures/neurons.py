"""Draw neurons as stacked bars of their weights, one colour per feature, as in "Toy Models of Superposition"."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from crux.plotting import GREY, new_figure, style_axes

BAR_WIDTH = 0.8
"""Width of a bar; neighbouring bars are 1 apart."""


class Panel(NamedTuple):
    """One panel: the neurons of a model, with their input or their output weights."""

    weights: Float[np.ndarray, "m n"]
    """Neurons × features; negative weights are drawn below zero."""
    title: str
    y: str
    """Label of the vertical axis."""
    polysemantic: Sequence[bool]
    """One value per neuron; polysemantic neurons get a grey background."""


def plot_neurons(panels: Sequence[Panel], *, columns: int, width: float, height: float) -> Figure:
    """Draw the panels in rows of `columns`, all at one scale, with colours from the most important feature (dark) to the least.

    In a bar the largest weight is nearest to zero.

    Args:
        width: of a panel, in inches.
        height: of a panel, in inches.
    """
    columns = min(columns, len(panels))
    rows, n = -(-len(panels) // columns), panels[0].weights.shape[1]
    figure = new_figure(width=1.0 + width * columns, height=0.5 + height * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    shades = ListedColormap(matplotlib.colormaps["turbo"](np.linspace(0.03, 0.97, n)))
    reach = [0.0, 0.0]
    for i, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
        low, high = _draw_bars(axes, panel, shades)
        reach = [min(reach[0], low), max(reach[1], high)]
        style_axes(axes, x="", y=panel.y if i % columns == 0 else "")
        axes.set_title(panel.title, loc="left", fontsize=9)
        axes.set_xlim(-0.7, len(panel.weights) - 0.3)
        axes.grid(visible=False, axis="x")
        axes.set_xticks(range(len(panel.weights)) if len(panel.weights) <= 10 else [])
        if i + columns >= len(panels):
            axes.set_xlabel("hidden neuron" if len(panel.weights) <= 10 else "hidden neurons, most monosemantic first")
    grid[0, 0].set_ylim(1.05 * reach[0], 1.05 * reach[1])
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    key = ScalarMappable(cmap=shades, norm=BoundaryNorm(np.arange(n + 1) - 0.5, n))
    drawn = grid.flat[: len(panels)].tolist()
    bar = figure.colorbar(key, ax=drawn, aspect=40, label="feature, the most important is 0")
    bar.set_ticks(np.unique(np.linspace(0, n - 1, min(n, 11)).round()).tolist())
    bar.minorticks_off()
    figure.supxlabel("grey background: a polysemantic neuron", x=0.01, ha="left", fontsize=8, color=GREY)
    return figure


def _draw_bars(axes: Axes, panel: Panel, shades: ListedColormap) -> tuple[float, float]:
    """Draw bars and backgrounds; return the lowest and the highest end of the bars."""
    axes.axhline(0, color=GREY, linewidth=0.6)
    for neuron, polysemantic in enumerate(panel.polysemantic):
        if polysemantic:
            axes.axvspan(neuron - 0.5, neuron + 0.5, color="#e6e6e6", linewidth=0, zorder=0)
    pieces, colours, low, high = [], [], 0.0, 0.0
    for neuron, row in enumerate(panel.weights):
        ends = {True: 0.0, False: 0.0}  # of the bar so far: upwards for positive weights, downwards for negative ones
        for feature in np.argsort(-np.abs(row)):
            if row[feature] != 0:
                up = bool(row[feature] > 0)
                start = ends[up]
                ends[up] = end = start + float(row[feature])
                left, right = neuron - BAR_WIDTH / 2, neuron + BAR_WIDTH / 2
                pieces.append([(left, start), (right, start), (right, end), (left, end)])
                colours.append(shades(int(feature)))
        low, high = min(low, ends[False]), max(high, ends[True])
    axes.add_collection(PolyCollection(pieces, facecolors=colours, edgecolors="white", linewidths=0.3, zorder=2))
    return low, high
