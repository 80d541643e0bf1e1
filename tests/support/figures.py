"""Find what a figure shows by its titles, labels and legend, as a reader does."""

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D


def find_panels(figure: Figure, *, title: str = "", x: str = "", y: str = "") -> list[Axes]:
    """Return the visible panels with these words in title and axis labels, in the order in which they were drawn."""
    return [
        axes
        for axes in figure.axes
        if axes.get_visible()
        and title in (axes.get_title(loc="left") or axes.get_title())
        and x in axes.get_xlabel()
        and y in axes.get_ylabel()
    ]


def find_panel(figure: Figure, *, title: str = "", x: str = "", y: str = "") -> Axes:
    """Return the only panel with these words in title and axis labels."""
    (axes,) = find_panels(figure, title=title, x=x, y=y)
    return axes


def find_line(axes: Axes, label: str) -> Line2D:
    """Return the only line whose label in the legend begins with these words."""
    (line,) = [line for line in axes.lines if str(line.get_label()).startswith(label)]
    return line


def points(line: Line2D) -> Float[np.ndarray, "point 2"]:
    """Return x and y of each point of a line."""
    return np.asarray(line.get_xydata())
