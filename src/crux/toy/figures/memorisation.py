"""Draw losses, dimensionality and the hidden plane against the size of a finite training set.

Henighan et al. 2023, "Superposition, Memorization, and Double Descent".
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from crux.plotting import BLUE, GREY, ORANGE, VERMILION, new_figure, style_axes


class TrainingSetFit(NamedTuple):
    """The result of training on one training set size."""

    points: int
    train: Float[np.ndarray, "seeds"]
    """Losses on the training points, one per seed."""
    test: Float[np.ndarray, "seeds"]
    """Losses on fresh data, one per seed."""
    best: int
    """The seed whose weights, hidden vectors and dimensionalities follow."""
    features: Float[np.ndarray, "2 n"]
    """The columns of W."""
    hidden: Float[np.ndarray, "2 points"]
    """Hidden vectors of the training points."""
    feature_dimensions: Float[np.ndarray, "n"]
    point_dimensions: Float[np.ndarray, "points"]


def plot_double_descent(sizes: Sequence[TrainingSetFit]) -> Figure:
    """Draw train and test loss above, the dimensionality of features and of training points below, against the training set size."""
    figure = new_figure(width=7.0, height=6.4)
    top, bottom = figure.subplots(2, 1, sharex=True)
    x = np.array([size.points for size in sizes])
    for name, colour, losses in (
        ("test", VERMILION, [size.test for size in sizes]),
        ("training points", BLUE, [size.train for size in sizes]),
    ):
        top.plot(x, [loss[size.best] for loss, size in zip(losses, sizes, strict=True)], color=colour, label=name)
        for at, loss in zip(x, losses, strict=True):
            top.plot(np.full(len(loss), at), loss, "o", color=colour, markersize=3.5, alpha=0.5, markeredgewidth=0)
    top.axhline(1, color=GREY, linewidth=0.8, linestyle=":", label="an output of 0")
    style_axes(top, x="", y="loss, share of |x|²", title="Loss; lines: the seed that fits its training points best")
    top.set(xscale="log", ylim=(0, None))
    top.legend(frameon=False, fontsize=8, loc="best")
    generator = np.random.default_rng(0)
    for name, colour, side, values in (
        ("features", ORANGE, -1, [size.feature_dimensions for size in sizes]),
        ("training points", BLUE, 1, [size.point_dimensions for size in sizes]),
    ):
        for i, (at, dimensions) in enumerate(zip(x, values, strict=True)):
            places = at * np.exp(side * 0.03 + 0.04 * side * generator.random(len(dimensions)))
            label = name if i == 0 else None
            bottom.plot(places, dimensions, ".", color=colour, markersize=4, alpha=0.45, markeredgewidth=0, label=label)
    line = np.geomspace(max(2, x[0]), x[-1], 100)
    bottom.plot(
        line, 2 / line, color=GREY, linewidth=0.9, linestyle="--", label="2 / points: a regular polygon of all points"
    )
    style_axes(
        bottom,
        x="training points",
        y="dimensionality D",
        title="Share of a dimension that each feature or training point has",
    )
    bottom.set(ylim=(-0.02, None))
    bottom.set_xticks(x, [f"{n:,}" for n in x], rotation=45 if len(x) > 10 else 0)
    bottom.xaxis.set_minor_locator(NullLocator())
    bottom.legend(frameon=False, fontsize=8, loc="upper right", markerscale=2.5)
    return figure


def plot_hidden_planes(sizes: Sequence[TrainingSetFit]) -> Figure:
    """Draw the hidden plane, one column per training set size: features above, hidden vectors of the training points below.

    Every panel has a separate scale.
    """
    figure = new_figure(width=0.6 + 2.0 * len(sizes), height=4.6)
    grid = figure.subplots(2, len(sizes), squeeze=False)
    for column, size in enumerate(sizes):
        _draw_rays(grid[0, column], size.features, ORANGE)
        _draw_rays(grid[1, column], size.hidden, BLUE)
        grid[0, column].set_title(f"{size.points:,} points", loc="left", fontsize=9)
        grid[1, column].set_xlabel("hidden unit 1", fontsize=8)
    grid[0, 0].set_ylabel("features: columns of W\nhidden unit 2", fontsize=8)
    grid[1, 0].set_ylabel("training points: W x\nhidden unit 2", fontsize=8)
    return figure


def _draw_rays(axes: Axes, vectors: Float[np.ndarray, "2 n"], colour: str) -> None:
    reach = 1.1 * float(np.abs(vectors).max())
    faint = 1.0 if vectors.shape[1] <= 10 else 0.35
    style_axes(axes, x="", y="")
    axes.add_collection(
        LineCollection([np.array([[0, 0], tip]) for tip in vectors.T], colors=colour, alpha=faint, linewidths=0.8)
    )
    axes.scatter(*vectors, s=10, color=colour, zorder=3, linewidths=0)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.tick_params(labelsize=7)
