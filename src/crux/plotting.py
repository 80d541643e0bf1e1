"""How every figure looks: a palette that colour-blind readers can tell apart, quiet axes, no global state."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
"""Okabe and Ito's, in an order whose neighbours differ most."""
GREY = "#555555"
MARKERS = ("o", "s", "^", "D", "v", "P")
"""Beside the colours: a figure printed in grey can still be read."""


def new_figure(*, width: float = 7.0, height: float = 4.2) -> Figure:
    """An empty figure, in inches; `savefig` renders it without a display (Agg)."""
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def dress(axes: Axes, *, x: str, y: str, title: str = "") -> None:
    """Labels with units, a light grid behind the data, no box around it."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
