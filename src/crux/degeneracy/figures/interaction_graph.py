"""An interaction graph: a column a layer, a node a direction, coloured by module; the stronger two interact the darker their line."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from crux.plotting import GREY, MARKERS, PALETTE, new_figure

MOST = 800
"""Lines between two layers; the weaker ones are left out, and the figure says how many."""

LABELLED = 16
"""Nodes a layer up to which each carries its number."""

NAMED = 8
"""Modules in the legend."""

PALE = "#bbbbbb"
"""Of nodes in no module, and of lines between modules."""


def interaction_graph(
    weights: Sequence[np.ndarray], modules: Sequence[np.ndarray], *, layers: Sequence[str], title: str
) -> Figure:
    """Nodes in the order of their modules, the strongest of each module on top.

    Args:
        weights: between each layer and the next [n_to, n_from]; 0: no line.
        modules: of each layer's nodes; -1: in none.
        layers: their names.
    """
    most = max(len(of) for of in modules)
    figure = new_figure(width=1.6 + 1.9 * len(layers), height=float(np.clip(1.5 + 0.16 * most, 3.2, 9)))
    axes = figure.subplots()
    order = [_order(i, weights, modules) for i in range(len(layers))]
    heights = [_heights(of, most) for of in order]
    size = float(np.clip(2600 / most, 9, 150))
    thin = float(np.clip(24 / most, 0.4, 1))
    drawn = sum(_lines(axes, i, weights[i], modules, heights, thin) for i in range(len(weights)))
    for i, of in enumerate(modules):
        for module in np.unique(of).tolist():
            here = of == module
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
    """Of a module's nodes; the seventh has the first one's, with another marker."""
    return PALETTE[module % len(PALETTE)] if module >= 0 else PALE


def marker(module: int) -> str:
    """Of a module's nodes."""
    return MARKERS[module // len(PALETTE) % len(MARKERS)] if module >= 0 else "o"


def _order(layer: int, weights: Sequence[np.ndarray], modules: Sequence[np.ndarray]) -> np.ndarray:
    """The nodes from top to bottom: by module, in it by strength, at last those in none."""
    strength = np.zeros(len(modules[layer]))
    if layer > 0:
        strength += weights[layer - 1].sum(1)
    if layer < len(weights):
        strength += weights[layer].sum(0)
    of = modules[layer]
    return np.lexsort((-strength, np.where(of < 0, of.max() + 1, of)))


def _heights(order: np.ndarray, most: int) -> np.ndarray:
    """Of each node, 1 on top; the nodes of smaller layers stand somewhat further apart, around the middle."""
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
    thin: float,
) -> int:
    """The lines to the next layer, the weaker ones first; returns how many there are."""
    to, come = np.nonzero(weights > 0)
    strength = weights[to, come]
    kept = np.argsort(strength)[-MOST:]
    to, come, share = to[kept], come[kept], strength[kept] / max(float(weights.max(initial=0)), 1e-300)
    ends = np.stack(
        [[np.full(len(to), layer), heights[layer][come]], [np.full(len(to), layer + 1), heights[layer + 1][to]]]
    )
    inside = (modules[layer][come] == modules[layer + 1][to]) & (modules[layer][come] >= 0)
    colours = [
        (*to_rgb(colour(module) if own else GREY), 0.06 + 0.74 * s**2)
        for module, own, s in zip(modules[layer][come].tolist(), inside, share, strict=True)
    ]
    axes.add_collection(
        LineCollection(
            list(ends.transpose(2, 0, 1)), colors=colours, linewidths=thin * (0.3 + 1.5 * share**2), zorder=1
        )
    )
    return len(to)


def _legend(axes: Axes, modules: Sequence[np.ndarray]) -> None:
    every = np.concatenate(list(modules))
    found = [int(m) for m in np.unique(every) if m >= 0]
    shown = found[:NAMED] + ([-1] if (every < 0).any() else [])
    names = {m: f"module {m}: {int((every == m).sum())}" for m in found} | {-1: f"no edge: {int((every < 0).sum())}"}
    handles = [
        Line2D([], [], linestyle="none", marker=marker(m), color=colour(m), markersize=6, label=names[m]) for m in shown
    ]
    if len(found) > NAMED:
        handles.append(Line2D([], [], linestyle="none", label=f"and {len(found) - NAMED} more"))
    axes.legend(handles=handles, fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
