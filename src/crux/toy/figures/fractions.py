"""The fractions of a dimension that features stick to, as lines with names."""

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
"""Name → fraction, and where the name stands so that the lowest two do not meet."""


def mark_fractions(axes: Axes) -> None:
    """A dotted line at each, its name to the right of the axes."""
    beside = axes.get_yaxis_transform()
    for name, (fraction, place) in FRACTIONS.items():
        axes.axhline(fraction, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
        axes.text(1.02, fraction, name, transform=beside, color=GREY, fontsize=8, va=place)
