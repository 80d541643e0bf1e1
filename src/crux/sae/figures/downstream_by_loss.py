"""The reconstruction of later residuals for several losses at the same L0, with one row of panels per hook point."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from crux.plotting import GREY, MARKERS, PALETTE, new_figure, style_axes
from crux.sae.figures.downstream import mark_sae


class DownstreamCurve(NamedTuple):
    """The downstream reconstruction of one loss at one hook point."""

    panel: str
    """Title of the row of panels."""
    label: str
    """The loss, and the L0 at which it is evaluated."""
    loss: str
    at: int
    """The k of the SAE's own hook point."""
    blocks: Float[np.ndarray, "_k"]
    """The k of each residual, which enters block k."""
    mse: Float[np.ndarray, "_seeds _k"]
    """Squared activation, per dimension."""
    explained_variance: Float[np.ndarray, "_seeds _k"]


def plot_downstream_by_loss(curves: Sequence[DownstreamCurve], *, n_layers: int) -> Figure:
    """Plot MSE (left) and explained variance (right) by the block that the residual enters; bands are the range over seeds.

    Args:
        n_layers: number of blocks; k = n_layers is the residual that leaves the last block.
    """
    panels, losses = (list(dict.fromkeys(getattr(curve, key) for curve in curves)) for key in ("panel", "loss"))
    figure = new_figure(width=10.5, height=3.8 * len(panels))
    grid = figure.subplots(len(panels), 2, squeeze=False)
    for (left, right), panel in zip(grid, panels, strict=True):
        panel_curves = [curve for curve in curves if curve.panel == panel]
        for curve in panel_curves:
            n = losses.index(curve.loss)
            for axes, values in ((left, curve.mse), (right, curve.explained_variance)):
                color, marker = PALETTE[n % len(PALETTE)], MARKERS[n % len(MARKERS)]
                axes.plot(
                    curve.blocks, values.mean(axis=0), color=color, marker=marker, markersize=5, label=curve.label
                )
                axes.fill_between(
                    curve.blocks, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2, linewidth=0
                )
        left.set_ylim(bottom=0)
        right.axhline(0, color=GREY, linewidth=0.8)  # below zero, the mean would be a better reconstruction
        right.set_ylim(bottom=min(right.get_ylim()[0], -0.05), top=1.02)
        style_axes(left, x="residual entering block", y="MSE (squared activation, per dimension)", title=panel)
        style_axes(right, x="residual entering block", y="explained variance (1 is perfect)")
        for axes in (left, right):
            mark_sae(axes, at=panel_curves[0].at, n_layers=n_layers)
        right.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8.5)
    return figure
