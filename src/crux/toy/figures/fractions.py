"""Mark the fractions of a dimension at which features cluster, as labelled lines."""

from matplotlib.axes import Axes

from crux.plotting import GREY

FRACTIONS = {
    "dedicated  1": (1, "center"),
    "tetrahedron  3/4": (3 / 4, "center"),
    "triangle  2/3": (2 / 3, "center"),
    "digon  1/2": (1 / 2, "center"),
    "pentagon  2/5": (2 / 5, "bottom"),
    "square antiprism  3/8": (3 / 8, "top"),
}
"""Name → fraction, and the vertical alignment of the name, so that the lowest two do not overlap."""


def mark_fractions(axes: Axes) -> None:
    """Draw a dotted line at each fraction, with its name to the right of the axes."""
    transform = axes.get_yaxis_transform()
    for name, (fraction, alignment) in FRACTIONS.items():
        axes.axhline(fraction, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
        axes.text(1.02, fraction, name, transform=transform, color=GREY, fontsize=8, va=alignment)
