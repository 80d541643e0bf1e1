"""The Pareto figure of a sweep: CE loss increase against L0 or alive latents, one colour per loss, one panel per hook point."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from crux.plotting import GREY, MARKERS, PALETTE, new_figure, style_axes


class Front(NamedTuple):
    """The Pareto curve of one loss and architecture."""

    panel: str
    """Title of its panel; "" if there is only one panel."""
    loss: str
    architecture: str
    """Empty if there is only one architecture."""
    seeds: list[Float[np.ndarray, "_runs 2"]]
    """The points (x, CE loss increase) of each seed, in the order in which they are connected."""
    mean: Float[np.ndarray, "_runs 2"]
    """The means over seeds of runs with the same sparsity setting."""


def plot_pareto(fronts: Sequence[Front], *, x: str) -> Figure:
    """Plot CE loss increase (nats per token) against x; down and to the left is better.

    Each seed is a thin line; the mean over seeds is a thick line with markers.

    Args:
        x: label of the x axis, with its unit.
    """
    panels = list(dict.fromkeys(front.panel for front in fronts))
    losses = list(dict.fromkeys(front.loss for front in fronts))
    architectures = list(dict.fromkeys(front.architecture for front in fronts))
    figure = new_figure(width=2.2 + 4.6 * min(len(panels), 3), height=0.3 + 3.9 * -(-len(panels) // 3))
    # at most three panels in a row
    grid = figure.subplots(-(-len(panels) // 3), min(len(panels), 3), squeeze=False).ravel()
    with_markers = losses if architectures == [""] else architectures
    for axes, panel in zip(grid, panels, strict=False):
        for front in (front for front in fronts if front.panel == panel):
            marker = MARKERS[with_markers.index(front.architecture or front.loss) % len(MARKERS)]
            _draw_front(axes, front, color=PALETTE[losses.index(front.loss) % len(PALETTE)], marker=marker)
        axes.set_xlim(0, 1.05 * axes.dataLim.x1)
        axes.set_ylim(0, 1.05 * axes.dataLim.y1)
        style_axes(axes, x=x, y="CE loss increase (nats per token)", title=panel)
    for axes in grid[len(panels) :]:
        axes.remove()
    figure.legend(
        handles=_make_legend(fronts, losses, architectures), loc="outside right upper", frameon=False, fontsize=8.5
    )
    return figure


def _draw_front(axes: Axes, front: Front, *, color: str, marker: str) -> None:
    if len(front.seeds) > 1:
        for points in front.seeds:
            axes.plot(*points.T, color=color, linewidth=0.8, alpha=0.5, marker=".", markersize=3)
    axes.plot(*front.mean.T, color=color, linewidth=2, marker=marker, markersize=6)


def _make_legend(fronts: Sequence[Front], losses: Sequence[str], architectures: Sequence[str]) -> list[Line2D]:
    single = list(architectures) == [""]  # then markers distinguish losses instead of architectures
    handles = [
        Line2D([], [], color=PALETTE[i % len(PALETTE)], linewidth=2, marker=MARKERS[i % len(MARKERS)] if single else None,
               label=loss)
        for i, loss in enumerate(losses)
    ]  # fmt: skip
    if not single:
        handles += [
            Line2D([], [], color=GREY, linewidth=0, marker=MARKERS[i % len(MARKERS)], label=name)
            for i, name in enumerate(architectures)
        ]
    if any(len(front.seeds) > 1 for front in fronts):
        n = sorted({len(front.seeds) for front in fronts})
        words = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
        handles.append(
            Line2D([], [], color=GREY, linewidth=0.8, alpha=0.5, marker=".", markersize=3, label=f"{words} seeds")
        )
    return handles
