"""Figure of grokking: losses on training and held-out pairs, and the accuracy on held-out pairs, over the steps."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from crux.plotting import BLUE, GREEN, VERMILION, new_figure, style_axes


def grokking(
    steps: Sequence[float], train_loss: Sequence[float], test_loss: Sequence[float], test_accuracy: Sequence[float]
) -> Figure:
    """Plot both losses on a logarithmic axis over the optimiser steps, and below them the share of held-out pairs that are right."""
    figure = new_figure(width=7.0, height=5.0)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    above.plot(steps, train_loss, color=BLUE, label="training pairs")
    above.plot(steps, test_loss, color=VERMILION, linestyle="--", label="held-out pairs")
    above.set_yscale("log")
    above.legend(frameon=False)
    style_axes(above, x="", y="cross-entropy (nats)")
    below.plot(steps, test_accuracy, color=GREEN)
    below.set_ylim(-0.03, 1.05)
    style_axes(below, x="optimiser step", y="held-out pairs right")
    return figure
