"""Draw the excess of the loss of trained toy models over the exact optimum."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from crux.plotting import BLUE, GREY, new_figure, style_axes


def plot_excess_losses(
    densities: Sequence[float], excess: Float[np.ndarray, "density seed"], *, shapes: Sequence[str], close: float
) -> Figure:
    """Draw (loss − exact optimum) / exact optimum of each restart, in per cent, with the optimum's shape above."""
    figure = new_figure(width=1.5 + 0.95 * len(densities), height=4.0)
    axes = figure.subplots()
    for i, (row, shape) in enumerate(zip(100 * excess, shapes, strict=True)):
        axes.scatter(np.full(len(row), i) + np.linspace(-0.2, 0.2, len(row)), row, color=BLUE, s=14, zorder=3)
        axes.annotate(
            shape.replace(" + ", "\n+ "),
            (i, 1.01),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            fontsize=7.5,
        )
    axes.axhline(100 * close, color=GREY, linestyle="--", linewidth=1, label=f"{100 * close:g} % above")
    axes.set_yscale("symlog", linthresh=100 * close)
    axes.set_ylim(-20 * close, max(2.5 * 100 * float(excess.max()), 1000 * close))
    axes.set_xticks(range(len(densities)), [f"{density:g}" for density in densities])
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    style_axes(axes, x="density p", y="loss above the exact optimum (%)\none point per restart")
    return figure
