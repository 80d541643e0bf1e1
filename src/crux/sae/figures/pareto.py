"""The Pareto figure of a sweep: CE loss increase against what it costs, one colour a loss, one panel a place in the network."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from crux.plotting import GREY, MARKERS, PALETTE, new_figure, style_axes


class Front(NamedTuple):
    """One curve."""

    panel: str
    """Title of the panel that it is drawn in; "" where there is one alone."""
    loss: str
    architecture: str
    """"" where there is one alone."""
    seeds: list[Float[np.ndarray, "_runs 2"]]
    """Each seed's runs: x, CE loss increase, in the order in which they are joined."""
    mean: Float[np.ndarray, "_runs 2"]
    """Over seeds, by what the runs were asked for."""


def plot_pareto(fronts: Sequence[Front], *, x: str) -> Figure:
    """CE loss increase (nats a token) against x, whose label with its unit is given; down and to the left is better.

    Each seed is a thin line, the mean over seeds a thick one with markers.
    """
    panels = list(dict.fromkeys(front.panel for front in fronts))
    losses = list(dict.fromkeys(front.loss for front in fronts))
    architectures = list(dict.fromkeys(front.architecture for front in fronts))
    figure = new_figure(width=2.2 + 4.6 * min(len(panels), 3), height=0.3 + 3.9 * -(-len(panels) // 3))
    grid = figure.subplots(-(-len(panels) // 3), min(len(panels), 3), squeeze=False).ravel()
    told_apart = losses if architectures == [""] else architectures
    for axes, panel in zip(grid, panels, strict=False):
        for front in (front for front in fronts if front.panel == panel):
            marker = MARKERS[told_apart.index(front.architecture or front.loss) % len(MARKERS)]
            _draw(axes, front, color=PALETTE[losses.index(front.loss) % len(PALETTE)], marker=marker)
        axes.set_xlim(0, 1.05 * axes.dataLim.x1)
        axes.set_ylim(0, 1.05 * axes.dataLim.y1)
        style_axes(axes, x=x, y="CE loss increase (nats per token)", title=panel)
    for axes in grid[len(panels) :]:
        axes.remove()
    figure.legend(
        handles=_legend(fronts, losses, architectures), loc="outside right upper", frameon=False, fontsize=8.5
    )
    return figure


def _draw(axes: Axes, front: Front, *, color: str, marker: str) -> None:
    if len(front.seeds) > 1:
        for points in front.seeds:
            axes.plot(*points.T, color=color, linewidth=0.8, alpha=0.5, marker=".", markersize=3)
    axes.plot(*front.mean.T, color=color, linewidth=2, marker=marker, markersize=6)


def _legend(fronts: Sequence[Front], losses: Sequence[str], architectures: Sequence[str]) -> list[Line2D]:
    alone = list(architectures) == [""]
    handles = [
        Line2D([], [], color=PALETTE[i % len(PALETTE)], linewidth=2, marker=MARKERS[i % len(MARKERS)] if alone else None,
               label=loss)
        for i, loss in enumerate(losses)
    ]  # fmt: skip
    if not alone:
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
