"""Where chains were: nβ (L(w) − L(w*)) along each."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from crux.plotting import BLUE, GREY, SKY, VERMILION, new_figure, style_axes

MOST = 12
"""Panels."""


def llc_traces(
    names: Sequence[str],
    trace: np.ndarray,
    *,
    mean: Sequence[float],
    error: Sequence[float],
    known: Sequence[float | None],
) -> Figure:
    """A panel a case (the first 12): each chain's mean so far, over that of all chains with three standard errors, and λ where it is known.

    The draws themselves scatter by √λ around their mean; a chain's mean so far shows what the estimate rests on. One that still
    drifts, or keeps a level of its own, has not mixed; one that falls below 0 found a better place than w*.

    Args:
        trace: [case, chain, draw].
    """
    n = min(len(names), MOST)
    columns = min(3, n)
    rows = -(-n // columns)
    figure = new_figure(width=2.9 * columns + 0.4, height=2.1 * rows + 0.5)
    panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    so_far = trace.cumsum(2) / np.arange(1, trace.shape[2] + 1)
    share = np.linspace(0, 1, trace.shape[2])
    for i, axes in enumerate(panels):
        if i >= n:
            axes.set_visible(False)
            continue
        axes.plot(share, so_far[i].T, color=SKY, linewidth=0.7)
        axes.plot(share, so_far[i].mean(0), color=BLUE, linewidth=1.6)
        axes.axhspan(mean[i] - 3 * error[i], mean[i] + 3 * error[i], color=GREY, alpha=0.25, linewidth=0)
        value = known[i]
        if value is not None:
            axes.axhline(value, color=VERMILION, linestyle=":", linewidth=1.4)
        settled = so_far[i, :, trace.shape[2] // 20 :]
        low, high = float(settled.min()), float(settled.max())
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
