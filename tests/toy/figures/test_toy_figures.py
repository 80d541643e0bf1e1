"""The contents of the toy models' figures, read back from their axes."""

import io

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mpl_toolkits.mplot3d.art3d import Line3D

from crux.toy.figures.dimensionality import plot_dimensionality
from crux.toy.figures.dynamics import plot_learning_dynamics
from crux.toy.figures.polygons import density_title, plot_polygons
from crux.toy.figures.stages import plot_stages
from crux.toy.figures.superposition import plot_superposition
from crux.toy.figures.vulnerability import plot_vulnerability
from tests.support.figures import find_line, find_panel, find_panels, points

ANGLES = np.arange(5) * 2 * np.pi / 5
PENTAGON = np.stack([np.cos(ANGLES), np.sin(ANGLES)])
NAMES = ["dedicated  1", "tetrahedron  3/4", "triangle  2/3", "digon  1/2", "pentagon  2/5", "square antiprism  3/8"]
FRACTIONS = [1, 3 / 4, 2 / 3, 1 / 2, 2 / 5, 3 / 8]


def find_bars(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def render(figure: Figure) -> None:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    assert out.getvalue().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("density", "title"),
    [(1.0, "density 1 (0 % sparse)"), (0.2, "density 0.2 (80 % sparse)"), (0.001, "density 0.001 (99.9 % sparse)")],
)
def test_titles_say_density_and_sparsity(density: float, title: str) -> None:
    assert density_title(density) == title


@pytest.mark.parametrize("panels", [1, 5, 7])
def test_polygons_have_one_panel_per_model_and_one_ray_per_feature(panels: int) -> None:
    weights = np.stack([PENTAGON * (1 + k) for k in range(panels)])
    importances = 0.9 ** np.arange(5)
    figure = plot_polygons(weights, importances=importances, titles=[f"model {k}" for k in range(panels)])
    models = find_panels(figure, title="model")
    assert [axes.get_title(loc="left") for axes in models] == [f"model {k}" for k in range(panels)]
    for axes, W in zip(models, weights, strict=True):
        rays, dots = axes.collections
        np.testing.assert_allclose(np.asarray(dots.get_offsets()), W.T)
        np.testing.assert_allclose([np.asarray(path.vertices)[1] for path in rays.get_paths()], W.T)
        np.testing.assert_allclose(np.asarray(dots.get_array()), importances)
        assert axes.get_aspect() == 1
        assert axes.get_xlim()[1] > panels
    assert models[0].get_ylabel() == "hidden unit 2"
    assert models[-1].get_xlabel() == "hidden unit 1"
    assert find_panel(figure, y="importance of the feature")
    render(figure)


def test_equal_importances_need_no_colour_bar() -> None:
    figure = plot_polygons(PENTAGON[None], importances=np.ones(5), titles=["p"])
    assert not find_panels(figure, y="importance")
    render(figure)


def test_superposition_shows_the_products_the_bias_and_the_norms() -> None:
    weights = np.stack([PENTAGON, 0.5 * PENTAGON, np.zeros((2, 5))])
    biases = np.linspace(-0.5, 0.5, 15).reshape(3, 5)
    norms = np.array([[1.0] * 5, [0.5] * 5, [0.0] * 5])
    shared = np.array([[1.5] * 5, [0, 0.25, 0.5, 0.75, 1], [0.0] * 5])
    titles = ["linear", "density 0.1", "nothing"]
    figure = plot_superposition(weights=weights, biases=biases, norms=norms, superposition=shared, titles=titles)
    above, below = [find_panel(figure, title=title) for title in titles], find_panels(figure, x="norm")
    for k, axes in enumerate(above):
        products, bias = axes.images
        np.testing.assert_allclose(np.asarray(products.get_array()), weights[k].T @ weights[k])
        np.testing.assert_allclose(np.asarray(bias.get_array()).ravel(), biases[k])
        assert products.norm is bias.norm  # the same colour scale
        assert products.get_extent()[1] < bias.get_extent()[0]  # side by side
        assert axes.get_xticklabels()[-1].get_text() == "b"
        np.testing.assert_allclose([bar.get_width() for bar in find_bars(below[k])], norms[k])
        assert below[k].get_ylim() == axes.get_ylim() == (4.5, -0.5)  # feature 0 is at the top of both
    colours = [bar.get_facecolor() for bar in find_bars(below[1])]
    assert len(set(colours)) == 5
    assert find_bars(below[0])[0].get_facecolor() == colours[-1]  # 1 and more have the same, brightest colour
    assert find_panel(figure, y="$W^T W$, and bias")
    assert find_panel(figure, y="superposition")
    render(figure)


def test_dimensionality_line_is_the_mean_over_seeds() -> None:
    densities = np.array([0.1, 1.0, 0.1])
    spread = np.array([0.4, 1.0, 0.6])
    D = np.array([[0.4, 0.4, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    figure = plot_dimensionality(densities=densities, dimensions_per_feature=spread, dimensionality=D)
    axes = find_panel(figure)
    np.testing.assert_allclose(points(find_line(axes, "$D^*")), [[1, 1.0], [10, 0.5]])
    dots = next(c for c in axes.collections if isinstance(c, PathCollection)).get_offsets()
    np.testing.assert_allclose(np.asarray(dots)[:, 1], D.ravel())
    np.testing.assert_allclose(np.asarray(dots)[:, 0].reshape(3, 3), np.outer([10, 1, 10], np.ones(3)), rtol=0.6)
    assert axes.get_xscale() == "log"
    assert "density" in axes.get_xlabel()
    assert [text.get_text() for text in axes.texts] == NAMES
    marked = [points(line)[0, 1] for line in axes.lines if line.get_linestyle() == ":"]
    assert marked == pytest.approx(FRACTIONS)
    render(figure)


def test_dimensionality_of_one_model() -> None:
    one = np.ones(1)
    render(plot_dimensionality(densities=0.1 * one, dimensions_per_feature=one, dimensionality=np.full((1, 4), 0.5)))


def test_dynamics_share_their_steps() -> None:
    steps, loss_steps = np.array([0, 100, 200]), np.arange(0, 201, 10)
    D = np.array([[0.1, 0.9], [0.5, 0.5], [0.5, 0.5]])
    loss = 1 / (1 + loss_steps)
    figure = plot_learning_dynamics(steps=steps, dimensionality=D, loss_steps=loss_steps, loss=loss)
    above, below = find_panel(figure, y="dimensionality"), find_panel(figure, x="optimiser step", y="loss")
    curves = [line for line in above.lines if line.get_linestyle() == "-"]
    np.testing.assert_allclose([points(line)[:, 1] for line in curves], D.T)
    np.testing.assert_allclose(points(below.lines[0])[:, 1], loss)
    assert below.get_xlim() == above.get_xlim()
    assert below.get_yscale() == "log"
    assert (below.get_xlabel(), below.get_ylabel()) == ("optimiser step", "loss")
    assert find_panel(figure, y="feature i")
    assert [text.get_text() for text in above.texts] == NAMES
    render(figure)


def test_the_names_of_the_fractions_do_not_overlap() -> None:
    one = np.ones(1)
    figure = plot_dimensionality(densities=one, dimensions_per_feature=one, dimensionality=one[None])
    below = plot_learning_dynamics(
        steps=np.arange(2), dimensionality=np.ones((2, 1)), loss_steps=np.arange(2), loss=np.ones(2)
    )
    for drawn in (figure, below):
        render(drawn)
        boxes = [text.get_window_extent() for text in find_panel(drawn, y="dimension").texts]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_vulnerability_and_features_per_dimension() -> None:
    densities = np.array([1.0, 0.1, 0.3])
    figure = plot_vulnerability(
        densities=densities,
        vulnerability=np.array([1.0, 3.0, 2.0]),
        by_gradient=np.array([1.0, 3.5, 2.5]),
        features_per_dimension=np.array([1.0, 4.0, 1.5]),
    )
    left, right = find_panel(figure, x="1 / density"), find_panel(figure, y="vulnerability")
    attack, stronger = points(find_line(left, "analytic attack")), points(find_line(left, "gradient-based attack"))
    crowd = points(find_line(left, "features per dimension"))
    np.testing.assert_allclose(attack[:, 0], [1, 1 / 0.3, 10])  # dense to sparse, whatever the order given
    np.testing.assert_allclose(attack[:, 1], [1, 2, 3])
    np.testing.assert_allclose(stronger[:, 1], [1, 2.5, 3.5])
    np.testing.assert_allclose(crowd[:, 1], [1, 1.5, 4])
    np.testing.assert_allclose(np.asarray(right.collections[0].get_offsets()), [[1, 1], [4, 3], [1.5, 2]])
    render(figure)


def test_stages_are_marked_on_the_loss() -> None:
    weights = np.stack([np.concatenate([np.eye(3), -np.eye(3)], axis=1) * (k + 1) for k in range(3)])
    steps, loss = np.arange(0, 101, 10), np.linspace(1, 0.5, 11)
    figure = plot_stages(
        weights=weights,
        stages=np.array([0, 40, 100]),
        sets=np.array([0, 0, 0, 1, 1, 1]),
        steps=steps,
        loss=loss,
        titles=["a", "b", "c"],
    )
    panels, below = find_panels(figure, title="step"), find_panel(figure, y="loss")
    assert [axes.get_title() for axes in panels] == ["A  step 0\na", "B  step 40\nb", "C  step 100\nc"]
    for axes, W in zip(panels, weights, strict=True):
        tips = np.stack(
            [np.asarray(line.get_data_3d())[:, 1] for line in axes.lines if isinstance(line, Line3D)], axis=1
        )
        np.testing.assert_allclose(tips, W)
    assert [text.get_text() for text in below.texts] == ["A", "B", "C"]
    np.testing.assert_allclose([points(line)[0] for line in below.lines[1:]], [[0, 1], [40, 0.8], [100, 0.5]])
    render(figure)
