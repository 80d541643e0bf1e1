"""Figure of synchronised ReLU neurons: distances to the nearest neuron, and the loss when neurons share gates."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from crux.plotting import BLUE, GREY, PALETTE, VERMILION, new_figure, style_axes


def synchronised_neurons(
    nearest: Mapping[str, Float[np.ndarray, "_h"]],
    *,
    thresholds: Sequence[float],
    gates: Sequence[float],
    loss: Sequence[float],
    chance: Sequence[float],
    unmodified: float,
) -> Figure:
    """Plot the distances to the nearest neuron (left) and the loss over the share of gates left (right).

    The right panel compares blocks of neurons closer than a threshold, whose values label the points, with random blocks of the same sizes.

    Args:
        nearest: distance of each living neuron to the nearest other living neuron of its layer, per layer.
        thresholds: distance thresholds of the blocks.
        gates: number of different gates at each threshold, as a share of the living neurons.
        loss: loss at each threshold.
        chance: loss with random blocks of the same sizes.
        unmodified: loss of the unmodified network.
    """
    figure = new_figure(width=9.0, height=3.8)
    left, right = figure.subplots(1, 2)
    for colour, (name, values) in zip(PALETTE, nearest.items(), strict=False):
        values = np.sort(values)
        left.step(values, np.arange(1, len(values) + 1) / len(values), where="post", color=colour, label=name)
    left.set_xscale("symlog", linthresh=1e-3)
    left.set_xlim(0, max(1.0, *(values.max() for values in nearest.values() if len(values))))
    left.set_ylim(0, 1.02)
    left.legend(frameon=False, fontsize=8)
    style_axes(left, x="distance to the nearest neuron, max(D, Dᵀ)", y="share of living neurons")
    right.plot(gates, loss, color=BLUE, marker="o", markersize=4, label="blocks by distance")
    right.plot(gates, chance, color=VERMILION, marker="s", markersize=4, linestyle="--", label="blocks at random")
    right.axhline(unmodified, color=GREY, linewidth=1, linestyle=":", label="no gates shared")
    last_labelled = 1.0  # share of gates left at the last labelled point; closer points would have overlapping labels
    for threshold, x, y in zip(thresholds, gates, loss, strict=True):
        if last_labelled - x >= 0.06:
            right.annotate(
                f"{threshold:g}", (x, y), textcoords="offset points", xytext=(0, -11), ha="center", fontsize=7
            )
            last_labelled = x
    right.invert_xaxis()
    right.set_yscale("log")
    right.margins(y=0.1)
    right.yaxis.set_minor_formatter(NullFormatter())
    losses = (*loss, *chance)
    if max(losses) < 30 * min(losses):  # powers of ten alone might give the axis at most one label
        right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    right.legend(frameon=False, fontsize=8)
    style_axes(right, x="gates left, share of living neurons", y="loss (nats)")
    return figure
