"""Histograms of similarities within SAEs, between seeds and between losses (Braun et al. 2405.12241, figures 3, 7 and 8)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from crux.plotting import GREY, PALETTE, new_figure, style_axes

N_BINS = 60


class SimilarityHistogram(NamedTuple):
    """The largest cosines of the latents of one or several SAEs of the same kind, and the chance levels."""

    label: str
    """The kind of SAEs, such as `e2e`. Each has one colour in the whole figure."""
    cosines: Float[np.ndarray, "_latents"]
    isotropic: Float[np.ndarray, "_latents_of_isotropic"]
    """The same with isotropic random directions."""
    shaped: Float[np.ndarray, "_latents_of_shaped"]
    """The same with random directions that have the covariance of the activations."""


class SimilarityPanel(NamedTuple):
    """One panel of the figure."""

    row: str
    """Title of the row: the hook point."""
    column: str
    """Title of the column: what is compared."""
    histograms: list[SimilarityHistogram]
    """Empty if the sweep has no such pairs; the panel then says so."""


def plot_similarities(panels: Sequence[SimilarityPanel]) -> Figure:
    """Plot one row of panels per hook point and one column per comparison; all have the same axis of signed cosines.

    A solid line is the density of latents over their largest cosine, with a tick at its mean. Dashed lines are the chance level of
    covariance-shaped directions for each kind of SAE, the grey area is that of isotropic directions, over all kinds.
    """
    rows, columns = (list(dict.fromkeys(getattr(panel, key) for panel in panels)) for key in ("row", "column"))
    labels = list(dict.fromkeys(histogram.label for panel in panels for histogram in panel.histograms))
    figure = new_figure(width=1.8 + 3.5 * len(columns), height=0.5 + 3.2 * len(rows))
    grid = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True)
    bins = _choose_bins(panels)
    for panel in panels:
        axes = grid[rows.index(panel.row), columns.index(panel.column)]
        _draw_panel(axes, panel, labels, bins)
        first = panel.column == columns[0]
        title = f"{panel.row}\n{panel.column}" if first and len(rows) > 1 else panel.column
        style_axes(axes, x="largest cosine (signed)", y="density of latents" if first else "", title=title)
    figure.legend(handles=_make_legend(labels), loc="outside right upper", frameon=False, fontsize=8.5)
    return figure


def _choose_bins(panels: Sequence[SimilarityPanel]) -> Float[np.ndarray, "_edges"]:
    values = [each for panel in panels for histogram in panel.histograms for each in histogram[1:] if len(each)]
    lowest = min((float(np.min(each)) for each in values), default=0.0)
    return np.linspace(max(-1.0, np.floor(10 * lowest) / 10), 1.0, N_BINS + 1)


def _draw_panel(axes: Axes, panel: SimilarityPanel, labels: Sequence[str], bins: np.ndarray) -> None:
    if not panel.histograms:
        axes.text(0.5, 0.5, "no such pairs", transform=axes.transAxes, ha="center", color=GREY)
        return
    isotropic = np.concatenate([histogram.isotropic for histogram in panel.histograms])
    axes.hist(isotropic, bins=bins.tolist(), density=True, color=GREY, alpha=0.2)
    for histogram in panel.histograms:
        color = PALETTE[labels.index(histogram.label) % len(PALETTE)]
        for values, style, width in ((histogram.shaped, "--", 1.0), (histogram.cosines, "-", 1.8)):
            # with a margin above 1: a shared latent's cosine may be 1 + rounding
            heights, _ = np.histogram(np.minimum(values, 1.0), bins=bins, density=True)
            axes.stairs(heights, bins, color=color, linestyle=style, linewidth=width)
        mean = float(np.mean(histogram.cosines))
        axes.plot([mean], [0.0], color=color, marker="^", markersize=7, clip_on=False, zorder=3)
    axes.set_ylim(bottom=0)


def _make_legend(labels: Sequence[str]) -> list[Line2D]:
    colors = [PALETTE[i % len(PALETTE)] for i in range(len(labels))]
    handles = [
        Line2D([], [], color=color, linewidth=1.8, label=label) for color, label in zip(colors, labels, strict=True)
    ]
    handles.append(Line2D([], [], color=GREY, linewidth=0, marker="^", markersize=7, label="mean"))
    handles.append(Line2D([], [], color=GREY, linewidth=1, linestyle="--", label="chance,\ncovariance-shaped"))
    handles.append(Line2D([], [], color=GREY, linewidth=7, alpha=0.25, label="chance,\nisotropic"))
    return handles
