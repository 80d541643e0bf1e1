"""Figures of neurons as stacked bars, and of finite training sets."""

import numpy as np
from matplotlib.collections import LineCollection, PolyCollection

from crux.toy.figures.memorisation import TrainingSetFit, plot_double_descent, plot_hidden_planes
from crux.toy.figures.neurons import Panel, plot_neurons
from tests.support.figures import find_line, find_panel, find_panels, points


def test_bars_stack_from_the_largest_weight_outwards_both_ways() -> None:
    weights = np.array([[0.5, 1.0, -0.25], [0.0, 0.0, 2.0]])
    panels = [Panel(weights, f"panel {i}", "weights", [True, False]) for i in range(3)]
    figure = plot_neurons(panels, columns=2, width=2, height=2)
    first, last = find_panel(figure, title="panel 0"), find_panel(figure, title="panel 2")
    assert len(find_panels(figure, title="panel")) == 3
    assert find_panel(figure, y="feature, the most important is 0")
    (bars,) = [c for c in first.collections if isinstance(c, PolyCollection)]
    heights = [np.asarray(path.vertices)[:, 1] for path in bars.get_paths()]
    reach = [(height.min(), height.max()) for height in heights]
    assert reach == [(0, 1), (1, 1.5), (-0.25, 0), (0, 2)]
    assert len(first.patches) == 1  # the grey background of the first neuron, which is polysemantic
    low, high = last.get_ylim()
    assert low <= -0.25
    assert high >= 2


def build_fits() -> list[TrainingSetFit]:
    """Return three training set sizes with random vectors."""
    rng = np.random.default_rng(0)
    return [
        TrainingSetFit(
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


def test_lines_show_the_best_seed_and_dots_all_seeds() -> None:
    figure = plot_double_descent(build_fits())
    top, bottom = find_panel(figure, y="loss"), find_panel(figure, x="training points")
    assert points(find_line(top, "test"))[:, 1].tolist() == [1.5] * 3
    assert points(find_line(top, "training points"))[:, 1].tolist() == [0.2] * 3
    assert top.get_xscale() == "log"
    dots = [line for line in bottom.lines if line.get_marker() == "."]
    assert [len(points(line)) for line in dots] == [20, 20, 20, 3, 10, 40]


def test_planes_show_features_above_points() -> None:
    figure = plot_hidden_planes(build_fits())
    rays = [c for axes in find_panels(figure) for c in axes.collections if isinstance(c, LineCollection)]
    assert [len(c.get_segments()) for c in rays] == [20, 20, 20, 3, 10, 40]
    assert find_panel(figure, title="3 points")
