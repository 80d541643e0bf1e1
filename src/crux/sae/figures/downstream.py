"""The reconstruction of later residuals in the spliced pass of one SAE (Braun et al. 2405.12241, figs. 2 and 12)."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from crux.plotting import GREY, MARKERS, PALETTE, new_figure, style_axes

SUBSETS = {"": "all positions", "/rest": "without position 0"}


def plot_downstream(metrics: Mapping[str, float], *, hook: str, n_layers: int, at: int) -> Figure:
    """Plot MSE (left) and explained variance (right) by the block that the residual enters (Braun et al., figs. 2 and 12).

    Args:
        metrics: metrics of an evaluation; `mse`, `explained_variance`, `downstream_mse/<k>`, `downstream_ev/<k>` and the same
            with `/rest` are used.
        hook: the SAE's hook point, for the title.
        n_layers: number of blocks; k = n_layers is the residual that leaves the last block.
        at: the k of the SAE's own hook point.
    """
    figure = new_figure(width=9.0, height=3.8)
    left, right = figure.subplots(1, 2)
    for n, (suffix, label) in enumerate(SUBSETS.items()):
        for axes, at_sae, later in ((left, "mse", "downstream_mse"), (right, "explained_variance", "downstream_ev")):
            values = {at: metrics.get(at_sae + suffix)} | {
                k: metrics.get(f"{later}/{k}{suffix}") for k in range(n_layers + 1) if k != at
            }
            points = sorted((k, value) for k, value in values.items() if value is not None)
            k, value = np.asarray(points, float).reshape(-1, 2).T
            dash = ("-", "--")[n]
            axes.plot(k, value, color=PALETTE[n], marker=MARKERS[n], markersize=5, linestyle=dash, label=label)
    left.set_ylim(bottom=0)
    right.axhline(0, color=GREY, linewidth=0.8)  # below zero, the mean would be a better reconstruction
    right.set_ylim(bottom=min(right.get_ylim()[0], -0.05), top=1.02)
    style_axes(left, x="residual entering block", y="MSE (squared activation, per dimension)", title=f"SAE at {hook}")
    style_axes(right, x="residual entering block", y="explained variance (1 is perfect)")
    for axes in (left, right):
        mark_sae(axes, at=at, n_layers=n_layers)
    left.legend(frameon=False, fontsize=8.5)
    return figure


def mark_sae(axes: Axes, *, at: int, n_layers: int) -> None:
    """Mark the SAE's position, and label the axis with block numbers and with `end` for the residual after the last block."""
    axes.axvline(at, color=GREY, linewidth=0.8, linestyle=":")
    axes.text(at, 0.99, " SAE", transform=axes.get_xaxis_transform(), color=GREY, fontsize=8, va="top")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(lambda k, _: "end" if round(k) == n_layers else f"{k:.0f}")
    axes.set_xlim(at - 0.3, n_layers + 0.3)
