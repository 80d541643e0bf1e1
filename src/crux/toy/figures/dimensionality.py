"""Draw dimensions per feature and each feature's dimensionality against sparsity, with the fractions at which they cluster."""

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from crux.plotting import PALETTE, new_figure, style_axes
from crux.toy.figures.fractions import mark_fractions


def plot_dimensionality(
    *,
    densities: Float[np.ndarray, "models"],
    dimensions_per_feature: Float[np.ndarray, "models"],
    dimensionality: Float[np.ndarray, "models n"],
) -> Figure:
    """Draw D* = m / ‖W‖_F² as a line and every D_i as a dot, against 1/(1−S) = 1/density on a logarithmic axis.

    If several models (seeds) have the same density, the line goes through their mean. Dots are shifted sideways by a small fixed
    pattern, so that they remain distinguishable.
    """
    sparsity = 1 / densities
    figure = new_figure(width=8.4, height=5.0)
    axes = figure.subplots()
    mark_fractions(axes)
    levels = np.unique(sparsity)
    step = np.diff(np.log(levels)).min() if len(levels) > 1 else 0.1
    n = dimensionality.shape[1]
    sideways = np.exp(
        0.35 * step * (np.arange(n) * 0.6180339887 % 1 - 0.5)
    )  # multiples of the golden ratio are evenly spread
    axes.scatter(
        sparsity[:, None] * sideways,
        dimensionality,
        s=9 if dimensionality.size < 20_000 else 4,
        color=PALETTE[0],
        alpha=0.35,
        linewidth=0,
        label="$D_i$ of each feature",
        rasterized=True,
    )
    means = [dimensions_per_feature[sparsity == level].mean() for level in levels]
    axes.plot(
        levels, means, color=PALETTE[1], linewidth=1.8, marker="o", markersize=4, label=r"$D^* = m\,/\,\|W\|_F^2$"
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(-0.03, 1.08)
    style_axes(axes, x="1 / (1 − S) = 1 / density", y="dimensions per feature")
    axes.grid(visible=False, axis="y")
    axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.92), fontsize=8.5)
    return figure
