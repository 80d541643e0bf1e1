"""Figure of an interaction graph: one column per layer and one node per direction, coloured by module; stronger edges are darker."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from crux.plotting import GREY, MARKERS, PALETTE, new_figure

MOST = 800
"""Largest number of lines between two layers. Weaker edges are left out, and the title gives their number."""

LABELLED = 16
"""Nodes are numbered if no layer has more nodes than this."""

NAMED = 8
"""Largest number of modules in the legend."""

PALE = "#bbbbbb"
"""Colour of nodes without a module."""


def interaction_graph(
    weights: Sequence[np.ndarray], modules: Sequence[np.ndarray], *, layers: Sequence[str], title: str
) -> Figure:
    """Plot the graph with the nodes of each layer sorted by module, and by strength within each module.

    Args:
        weights: edge weights from each layer to the next, [n_to, n_from]; 0: no edge.
        modules: module of each node, per layer; -1: no module.
        layers: names of the layers.
    """
    most = max(len(labels) for labels in modules)
    figure = new_figure(width=1.6 + 1.9 * len(layers), height=float(np.clip(1.5 + 0.16 * most, 3.2, 9)))
    axes = figure.subplots()
    order = [_order(i, weights, modules) for i in range(len(layers))]
    heights = [_heights(layer_order, most) for layer_order in order]
    size = float(np.clip(2600 / most, 9, 150))
    line_width = float(np.clip(24 / most, 0.4, 1))
    drawn = sum(_lines(axes, i, weights[i], modules, heights, line_width) for i in range(len(weights)))
    for i, labels in enumerate(modules):
        for module in np.unique(labels).tolist():
            here = labels == module
            axes.scatter(
                np.full(here.sum(), i), heights[i][here], s=size if module >= 0 else size / 3, color=colour(module),
                marker=marker(module), edgecolors="white", linewidths=0.4, zorder=3,
            )  # fmt: skip
        if most <= LABELLED:
            for node, y in enumerate(heights[i]):
                axes.annotate(
                    str(node), (i, y), xytext=(0, 0.6 * size**0.5), textcoords="offset points", ha="center",
                    va="bottom", fontsize=6, color=GREY, zorder=4,
                )  # fmt: skip
    total = sum(int((between > 0).sum()) for between in weights)
    axes.set_title(
        title if drawn == total else f"{title}  (the strongest {drawn} of {total} edges)", loc="left", fontsize=10
    )
    axes.set_xticks(range(len(layers)), layers, fontsize=8)
    axes.set_yticks([])
    axes.set_xlim(-0.35, len(layers) - 0.65)
    axes.set_ylim(-0.06, 1.06)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _legend(axes, modules)
    return figure


def colour(module: int) -> str:
    """Return the colour of a module's nodes. Colours repeat after six modules, with another marker."""
    return PALETTE[module % len(PALETTE)] if module >= 0 else PALE


def marker(module: int) -> str:
    """Return the marker of a module's nodes."""
    return MARKERS[module // len(PALETTE) % len(MARKERS)] if module >= 0 else "o"


def _order(layer: int, weights: Sequence[np.ndarray], modules: Sequence[np.ndarray]) -> np.ndarray:
    """Return the nodes of a layer from top to bottom: by module, then by descending strength; nodes without a module last."""
    strength = np.zeros(len(modules[layer]))
    if layer > 0:
        strength += weights[layer - 1].sum(1)
    if layer < len(weights):
        strength += weights[layer].sum(0)
    labels = modules[layer]
    return np.lexsort((-strength, np.where(labels < 0, labels.max() + 1, labels)))


def _heights(order: np.ndarray, most: int) -> np.ndarray:
    """Return the height of each node, 1 at the top. Smaller layers are centred, with somewhat larger distances between nodes."""
    n = len(order)
    span = (n - 1) / max(most - 1, 1)
    span = span + (1 - span) * 0.5 if n > 1 else 0.0
    heights = np.empty(n)
    heights[order] = 0.5 + span / 2 - span * np.arange(n) / max(n - 1, 1)
    return heights


def _lines(
    axes: Axes,
    layer: int,
    weights: np.ndarray,
    modules: Sequence[np.ndarray],
    heights: Sequence[np.ndarray],
    line_width: float,
) -> int:
    """Draw the edges to the next layer, the weakest first; return their number."""
    target, source = np.nonzero(weights > 0)
    strength = weights[target, source]
    kept = np.argsort(strength)[-MOST:]
    target, source, share = target[kept], source[kept], strength[kept] / max(float(weights.max(initial=0)), 1e-300)
    ends = np.stack(
        [
            [np.full(len(target), layer), heights[layer][source]],
            [np.full(len(target), layer + 1), heights[layer + 1][target]],
        ]
    )
    inside = (modules[layer][source] == modules[layer + 1][target]) & (modules[layer][source] >= 0)
    colours = [
        (*to_rgb(colour(module) if same_module else GREY), 0.06 + 0.74 * s**2)
        for module, same_module, s in zip(modules[layer][source].tolist(), inside, share, strict=True)
    ]
    axes.add_collection(
        LineCollection(
            list(ends.transpose(2, 0, 1)), colors=colours, linewidths=line_width * (0.3 + 1.5 * share**2), zorder=1
        )
    )
    return len(target)


def _legend(axes: Axes, modules: Sequence[np.ndarray]) -> None:
    labels = np.concatenate(list(modules))
    numbers = [int(m) for m in np.unique(labels) if m >= 0]
    entries = numbers[:NAMED] + ([-1] if (labels < 0).any() else [])
    names = {m: f"module {m}: {int((labels == m).sum())}" for m in numbers} | {
        -1: f"no edge: {int((labels < 0).sum())}"
    }
    handles = [
        Line2D([], [], linestyle="none", marker=marker(m), color=colour(m), markersize=6, label=names[m])
        for m in entries
    ]
    if len(numbers) > NAMED:
        handles.append(Line2D([], [], linestyle="none", label=f"and {len(numbers) - NAMED} more"))
    axes.legend(handles=handles, fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
