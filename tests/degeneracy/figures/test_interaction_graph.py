"""Tests of the interaction graph's nodes, lines and legend."""

import numpy as np
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from crux.degeneracy.figures.interaction_graph import MAX_EDGES_DRAWN, PALE, colour, interaction_graph, marker
from tests.support.figures import find_panel

WEIGHTS = [np.array([[3.0, 0, 0, 0], [0, 1, 2, 0]]), np.array([[1.0, 0.5]])]
"""Edge weights [to, from] of layers with four nodes, two nodes and one node. The last node of the first layer has no edge."""

MODULES = [np.array([0, 1, 1, -1]), np.array([0, 1]), np.array([0])]
"""Module of each node. The weaker edge to the last layer, of weight 0.5, is between modules 1 and 0."""


def find_lines(figure: Figure) -> list[LineCollection]:
    """Return the lines from each layer to the next."""
    return [c for c in find_panel(figure).collections if isinstance(c, LineCollection)]


def test_nodes_are_in_their_layers_in_the_order_of_modules() -> None:
    figure = interaction_graph(WEIGHTS, MODULES, layers=["a", "b", "c"], title="t")
    axes = find_panel(figure)
    groups = [c for c in axes.collections if isinstance(c, PathCollection)]
    nodes = np.concatenate([np.asarray(c.get_offsets()) for c in groups])
    assert [int((nodes[:, 0] == i).sum()) for i in range(3)] == [4, 2, 1]
    colours_in_first_layer = [
        (y, to_hex(np.asarray(c.get_facecolor())[0])) for c in groups for x, y in np.asarray(c.get_offsets()) if x == 0
    ]
    from_top = [hue for _, hue in sorted(colours_in_first_layer, reverse=True)]
    assert from_top == [c.lower() for c in (colour(0), colour(1), colour(1), PALE)]
    texts = [text for text in axes.texts if isinstance(text, Annotation)]
    height = {text.get_text(): text.xy[1] for text in texts if text.xy[0] == 0}
    assert height["0"] > height["2"] > height["1"] > height["3"]  # nodes 1 and 2 are in one module; 2 is stronger
    assert [t.get_text() for t in axes.get_xticklabels()] == ["a", "b", "c"]
    legend = axes.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["module 0: 3", "module 1: 3", "no module: 1"]


def test_stronger_edges_have_darker_lines_with_colours_inside_modules() -> None:
    first, second = find_lines(interaction_graph(WEIGHTS, MODULES, layers=["a", "b", "c"], title="t"))
    assert len(first.get_segments()) == 3  # the weakest first: weights 1, 2 and 3, in modules 1, 1 and 0
    alphas = np.asarray(first.get_colors())[:, 3]
    widths = np.asarray(first.get_linewidth())
    assert (np.diff(alphas) > 0).all()
    assert (np.diff(widths) > 0).all()
    assert [to_hex(c[:3]) for c in np.asarray(first.get_colors())] == [colour(m).lower() for m in (1, 1, 0)]
    across, inside = (to_hex(c[:3]) for c in np.asarray(second.get_colors()))
    assert inside == colour(0).lower()
    assert across not in (colour(0).lower(), colour(1).lower())


def test_only_the_strongest_of_many_edges_are_drawn_and_the_title_says_so() -> None:
    rng = np.random.default_rng(0)
    many = [rng.random((100, 100)) + 0.01]
    nine_modules = np.arange(100) % 9  # one more than the legend has room for
    figure = interaction_graph(many, [nine_modules] * 2, layers=["a", "b"], title="many")
    (drawn,) = find_lines(figure)
    assert len(drawn.get_segments()) == MAX_EDGES_DRAWN
    axes = find_panel(figure)
    assert axes.get_title(loc="left") == f"many  (the strongest {MAX_EDGES_DRAWN} of 10000 edges)"
    legend = axes.get_legend()
    assert legend is not None
    assert legend.get_texts()[-1].get_text() == "and 1 more"
    assert not axes.texts  # too many nodes to number them
    assert (colour(0), marker(0)) != (colour(6), marker(6))  # colours repeat after six modules
