"""The common style of all figures: a palette for colour-blind readers and plain axes, without changes to matplotlib's global settings."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
"""The palette of Okabe and Ito, ordered so that neighbours differ most."""
GREY = "#555555"
MARKERS = ("o", "s", "^", "D", "v", "P")
"""Markers that accompany the colours, so that a figure printed in grey can be read."""


def new_figure(*, width: float = 7.0, height: float = 4.2) -> Figure:
    """Return an empty figure with its size in inches; `savefig` needs no display."""
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def style_axes(axes: Axes, *, x: str, y: str, title: str = "") -> None:
    """Set the labels, which include units, and the title; draw a light grid behind the data and no box around it."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
