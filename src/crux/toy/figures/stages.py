"""Draw the geometry during training: features as points in three hidden dimensions at some steps, above the loss."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from crux.plotting import GREY, MARKERS, PALETTE, new_figure, style_axes


def plot_stages(
    *,
    weights: Float[np.ndarray, "stages 3 n"],
    stages: Int[np.ndarray, "stages"],
    sets: Int[np.ndarray, "n"],
    steps: Int[np.ndarray, "points"],
    loss: Float[np.ndarray, "points"],
    titles: Sequence[str],
) -> Figure:
    """Draw each column W_i as a point with a line from the origin; below, the loss, with the panels' steps marked by their letters.

    Colour and marker show the feature's set; all panels have the same scale.
    """
    figure = new_figure(width=1.0 + 2.6 * len(stages), height=5.6)
    grid = figure.add_gridspec(2, len(stages), height_ratios=[1.5, 1])
    reach = 0.75 * float(np.abs(weights).max())
    for k, (W, step, title) in enumerate(zip(weights, stages, titles, strict=True)):
        axes: Any = figure.add_subplot(grid[0, k], projection="3d")  # Axes3D, whose methods the stubs do not know
        for i, tip in enumerate(W.T):
            color = PALETTE[sets[i] % len(PALETTE)]
            axes.plot(*np.stack([np.zeros(3), tip], 1), color=color, linewidth=1.4)
            first = i == list(sets).index(sets[i])
            axes.scatter(
                *tip[:, None],
                color=color,
                marker=MARKERS[sets[i] % len(MARKERS)],
                s=32,
                depthshade=False,
                label=f"set {sets[i]}" if first else None,
            )
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach))
        axes.set(xticklabels=[], yticklabels=[], zticklabels=[])
        axes.set_xlabel("hidden unit 1", fontsize=7, labelpad=-13)
        axes.set_ylabel("hidden unit 2", fontsize=7, labelpad=-13)
        axes.set_zlabel("hidden unit 3", fontsize=7, labelpad=-13)
        axes.set_box_aspect((1, 1, 1), zoom=1.1)
        axes.view_init(elev=22, azim=35)
        axes.set_title(f"{chr(65 + k)}  step {step}\n{title}", fontsize=9)
        if k == 0:
            axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(-0.1, 1.0))
    below = figure.add_subplot(grid[1, :])
    below.plot(steps, loss, color=GREY, linewidth=1.4)
    for k, step in enumerate(stages):
        at = float(loss[list(steps).index(step)])
        below.plot(step, at, "o", color=PALETTE[1], markersize=5)
        below.annotate(chr(65 + k), (step, at), xytext=(4, 5), textcoords="offset points", fontsize=9)
    below.set_yscale("log")
    below.yaxis.set_minor_formatter(NullFormatter())
    style_axes(below, x="optimiser step", y="loss (sum over features)")
    return figure
