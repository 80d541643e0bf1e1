"""Figure of nβ (L(w) − L(w*)) along the chains."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from crux.plotting import BLUE, GREY, SKY, VERMILION, new_figure, style_axes

MAX_PANELS = 12
"""Largest number of panels."""


def llc_traces(
    names: Sequence[str],
    trace: np.ndarray,
    *,
    mean: Sequence[float],
    error: Sequence[float],
    known: Sequence[float | None],
) -> Figure:
    """Draw one panel per case (at most 12): each chain's running mean, that of all chains with three standard errors, and a known λ.

    Single draws scatter by about √λ around their mean, whereas running means show how reliable the estimate is. A chain that still
    drifts or stays at a different level has not mixed; one that falls below 0 found a lower loss than L(w*).

    Args:
        trace: nβ (L(w) − L(w*)) [case, chain, draw].
        mean: estimates; error: their standard errors.
        known: λ, or None if it is unknown.
    """
    n = min(len(names), MAX_PANELS)
    columns = min(3, n)
    rows = -(-n // columns)
    figure = new_figure(width=2.9 * columns + 0.4, height=2.1 * rows + 0.5)
    panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    running_mean = trace.cumsum(2) / np.arange(1, trace.shape[2] + 1)
    position = np.linspace(0, 1, trace.shape[2])
    for i, axes in enumerate(panels):
        if i >= n:
            axes.set_visible(False)
            continue
        axes.plot(position, running_mean[i].T, color=SKY, linewidth=0.7)
        axes.plot(position, running_mean[i].mean(0), color=BLUE, linewidth=1.6)
        axes.axhspan(mean[i] - 3 * error[i], mean[i] + 3 * error[i], color=GREY, alpha=0.25, linewidth=0)
        value = known[i]
        if value is not None:
            axes.axhline(value, color=VERMILION, linestyle=":", linewidth=1.4)
        late = running_mean[i, :, trace.shape[2] // 20 :]  # the first 5 % of the draws scatter too much to set the axis
        low, high = float(late.min()), float(late.max())
        low, high = (min(low, value), max(high, value)) if value is not None else (low, high)
        margin = 0.08 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
        style_axes(
            axes,
            x="share of the draws" if i >= n - columns else "",
            y="mean of nβ (L − L*) so far" if i % columns == 0 else "",
        )
        axes.set_title(names[i], loc="left", fontsize=8)
    return figure
