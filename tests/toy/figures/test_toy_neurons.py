"""Neurons as stacked bars, and what finite training sets leave: what the figures hold."""

import numpy as np
from matplotlib.collections import LineCollection, PolyCollection

from crux.toy.figures.memorised import Size, toy_losses, toy_planes
from crux.toy.figures.neurons import Panel, toy_neurons


def test_bars_stack_from_the_largest_weight_outwards_both_ways() -> None:
    weights = np.array([[0.5, 1.0, -0.25], [0.0, 0.0, 2.0]])
    panels = [Panel(weights, f"panel {i}", "weights", [False, True]) for i in range(3)]
    figure = toy_neurons(panels, columns=2, width=2, height=2)
    *axes, key = figure.axes
    assert [a.get_title("left") for a in axes] == ["panel 0", "panel 1", "panel 2"]
    assert key.get_ylabel() == "feature, the most important is 0"
    (bars,) = [c for c in axes[0].collections if isinstance(c, PolyCollection)]
    reach = [(path.vertices[:, 1].min(), path.vertices[:, 1].max()) for path in bars.get_paths()]  # pyright: ignore
    assert reach == [(0, 1), (1, 1.5), (-0.25, 0), (0, 2)]
    assert len(axes[0].patches) == 1  # the ground of the first neuron
    low, high = axes[2].get_ylim()
    assert low <= -0.25
    assert high >= 2


def sizes() -> list[Size]:
    """Three sizes with random vectors."""
    rng = np.random.default_rng(0)
    return [
        Size(
            points=points,
            train=np.array([0.1, 0.2]),
            test=np.array([1.0, 1.5]),
            best=1,
            features=rng.standard_normal((2, 20)),
            hidden=rng.standard_normal((2, points)),
            feature_dimensions=rng.random(20),
            point_dimensions=rng.random(points),
        )
        for points in (3, 10, 40)
    ]


def test_losses_of_the_best_seed_are_lines_those_of_all_are_dots() -> None:
    top, bottom = toy_losses(sizes()).axes
    lines = {line.get_label(): line for line in top.lines}
    assert lines["test"].get_ydata().tolist() == [1.5] * 3  # pyright: ignore[reportAttributeAccessIssue]
    assert lines["training points"].get_ydata().tolist() == [0.2] * 3  # pyright: ignore[reportAttributeAccessIssue]
    assert top.get_xscale() == "log"
    dots = [line for line in bottom.lines if line.get_marker() == "."]
    assert [len(line.get_xdata()) for line in dots] == [20, 20, 20, 3, 10, 40]  # pyright: ignore[reportArgumentType]
    assert bottom.get_xlabel() == "training points"


def test_planes_show_features_above_points() -> None:
    figure = toy_planes(sizes())
    rays = [c for axes in figure.axes for c in axes.collections if isinstance(c, LineCollection)]
    assert [len(c.get_segments()) for c in rays] == [20, 20, 20, 3, 10, 40]
    assert figure.axes[0].get_title("left") == "3 points"
