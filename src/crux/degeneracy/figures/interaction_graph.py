"""Figure of an interaction graph: one column per layer and one node per direction, coloured by module; stronger edges are darker."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from crux.plotting import GREY, MARKERS, PALETTE, new_figure

MAX_EDGES_DRAWN = 800
"""Largest number of edges that are drawn between two layers. Weaker edges are left out, and the title gives the numbers."""

MAX_NODES_TO_NUMBER = 16
"""Nodes are numbered if no layer has more nodes than this."""

MAX_MODULES_IN_LEGEND = 8

PALE = "#bbbbbb"
"""Colour of nodes without a module."""


def interaction_graph(
    weights: Sequence[np.ndarray], modules: Sequence[np.ndarray], *, layers: Sequence[str], title: str
) -> Figure:
    """Plot the graph with the nodes of each layer sorted by module, and by strength within each module.

    Args:
        weights: edge weights from each layer to the next, [n_to, n_from]; 0: no edge.
        modules: number of each node's module, one array per layer; -1: no module, because the node has no edges.
        layers: names of the layers.
    """
    most_nodes = max(len(module_of_node) for module_of_node in modules)
    figure = new_figure(width=1.6 + 1.9 * len(layers), height=float(np.clip(1.5 + 0.16 * most_nodes, 3.2, 9)))
    axes = figure.subplots()
    heights = [_place_nodes(_sort_nodes(layer, weights, modules), most_nodes) for layer in range(len(layers))]
    size = float(np.clip(2600 / most_nodes, 9, 150))
    line_width = float(np.clip(24 / most_nodes, 0.4, 1))
    drawn = sum(_draw_edges(axes, layer, weights[layer], modules, heights, line_width) for layer in range(len(weights)))
    for layer, module_of_node in enumerate(modules):
        for module in np.unique(module_of_node).tolist():
            in_module = module_of_node == module
            axes.scatter(
                np.full(in_module.sum(), layer), heights[layer][in_module], s=size if module >= 0 else size / 3,
                color=colour(module), marker=marker(module), edgecolors="white", linewidths=0.4, zorder=3,
            )  # fmt: skip
        if most_nodes <= MAX_NODES_TO_NUMBER:
            for node, y in enumerate(heights[layer]):
                axes.annotate(
                    str(node), (layer, y), xytext=(0, 0.6 * size**0.5), textcoords="offset points", ha="center",
                    va="bottom", fontsize=6, color=GREY, zorder=4,
                )  # fmt: skip
    total = sum(int((layer_weights > 0).sum()) for layer_weights in weights)
    axes.set_title(
        title if drawn == total else f"{title}  (the strongest {drawn} of {total} edges)", loc="left", fontsize=10
    )
    axes.set_xticks(range(len(layers)), layers, fontsize=8)
    axes.set_yticks([])
    axes.set_xlim(-0.35, len(layers) - 0.65)
    axes.set_ylim(-0.06, 1.06)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _add_legend(axes, modules)
    return figure


def colour(module: int) -> str:
    """Return the colour of a module's nodes. Colours repeat after six modules, with another marker."""
    return PALETTE[module % len(PALETTE)] if module >= 0 else PALE


def marker(module: int) -> str:
    """Return the marker of a module's nodes, which changes after each cycle of colours."""
    return MARKERS[module // len(PALETTE) % len(MARKERS)] if module >= 0 else "o"


def _sort_nodes(layer: int, weights: Sequence[np.ndarray], modules: Sequence[np.ndarray]) -> np.ndarray:
    """Return the nodes of a layer from top to bottom: by module, then by descending strength; nodes without a module last."""
    strength = np.zeros(len(modules[layer]))
    if layer > 0:
        strength += weights[layer - 1].sum(1)
    if layer < len(weights):
        strength += weights[layer].sum(0)
    module_of_node = modules[layer]
    without_module_last = np.where(module_of_node < 0, module_of_node.max() + 1, module_of_node)
    return np.lexsort((-strength, without_module_last))  # sorted by the last key first


def _place_nodes(order: np.ndarray, most_nodes: int) -> np.ndarray:
    """Return the height of each node, 1 at the top. Smaller layers are centred, with somewhat larger distances between nodes.

    Args:
        order: the layer's nodes from top to bottom.
        most_nodes: number of nodes of the largest layer.
    """
    n = len(order)
    span = (n - 1) / max(most_nodes - 1, 1)  # with the same distances as in the largest layer
    span = span + (1 - span) * 0.5 if n > 1 else 0.0
    heights = np.empty(n)
    heights[order] = 0.5 + span / 2 - span * np.arange(n) / max(n - 1, 1)
    return heights


def _draw_edges(
    axes: Axes,
    layer: int,
    weights: np.ndarray,
    modules: Sequence[np.ndarray],
    heights: Sequence[np.ndarray],
    line_width: float,
) -> int:
    """Draw the strongest edges from a layer to the next, the weakest of them first, and return how many are drawn."""
    target, source = np.nonzero(weights > 0)
    strength = weights[target, source]
    strongest = np.argsort(strength)[-MAX_EDGES_DRAWN:]
    target, source = target[strongest], source[strongest]
    relative_strength = strength[strongest] / max(float(weights.max(initial=0)), 1e-300)  # 1 for the strongest edge
    left_ends = np.column_stack([np.full(len(source), layer), heights[layer][source]])
    right_ends = np.column_stack([np.full(len(target), layer + 1), heights[layer + 1][target]])
    segments = np.stack([left_ends, right_ends], axis=1)  # [edge, left or right, x or y]
    source_modules = modules[layer][source]
    within_module = (source_modules == modules[layer + 1][target]) & (source_modules >= 0)
    colours = [
        (*to_rgb(colour(module) if is_within else GREY), 0.06 + 0.74 * s**2)
        for module, is_within, s in zip(source_modules.tolist(), within_module, relative_strength, strict=True)
    ]
    line_widths = line_width * (0.3 + 1.5 * relative_strength**2)
    axes.add_collection(LineCollection(list(segments), colors=colours, linewidths=line_widths, zorder=1))
    return len(target)


def _add_legend(axes: Axes, modules: Sequence[np.ndarray]) -> None:
    """Add a legend of the largest modules with their numbers of nodes, and of the nodes without a module."""
    module_of_node = np.concatenate(list(modules))
    numbers = [int(module) for module in np.unique(module_of_node) if module >= 0]
    names = {module: f"module {module}" for module in numbers[:MAX_MODULES_IN_LEGEND]}
    if (module_of_node < 0).any():
        names[-1] = "no module"
    handles = [
        Line2D([], [], linestyle="none", marker=marker(module), color=colour(module), markersize=6,
               label=f"{name}: {int((module_of_node == module).sum())}")
        for module, name in names.items()
    ]  # fmt: skip
    if (left_out := len(numbers) - MAX_MODULES_IN_LEGEND) > 0:
        handles.append(Line2D([], [], linestyle="none", label=f"and {left_out} more"))
    axes.legend(handles=handles, fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
