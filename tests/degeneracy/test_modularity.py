"""Tests that the modules of known graphs are found, and that their score equals that of networkx and the one by hand."""

import itertools

import networkx
import pytest
import torch
from torch import Tensor

from crux.config.errors import UserError
from crux.degeneracy.basis_options import ModularityOptions
from crux.degeneracy.modularity import (
    NO_MODULE,
    Modules,
    cutoff_from_ablation,
    edge_weights,
    find_modules,
    modularity,
)
from tests.support.groupings import same_grouping


def block_edges(sizes: list[list[int]], *, low: float, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return edges of about 1 within each block and `low` elsewhere, with shuffled nodes, and the true block of each node.

    Args:
        sizes: number of nodes, [layer][block].
    """
    rng = torch.Generator().manual_seed(seed)
    true_blocks = [torch.repeat_interleave(torch.arange(len(s)), torch.tensor(s)) for s in sizes]
    true_blocks = [t[torch.randperm(len(t), generator=rng)] for t in true_blocks]
    edges = []
    for a, b in itertools.pairwise(true_blocks):
        noise = torch.rand(len(b), len(a), generator=rng, dtype=torch.float64) + 0.5
        edges.append(torch.where(b[:, None] == a[None], noise, low * noise))
    return edges, true_blocks


def find_with_one_cutoff(
    edges: list[Tensor],
    cutoff: float = 0.1,
    *,
    constant: list[Tensor] | None = None,
    resolution: float = 1.0,
    starts: int = 5,
    seed: int = 0,
) -> Modules:
    """Return the modules, with the same cutoff between all layers."""
    options = ModularityOptions(resolution, iterations=10, starts=starts)
    return find_modules(edges, cutoffs=[cutoff] * len(edges), constant=constant, options=options, seed=seed)


def test_modularity_by_hand() -> None:
    """Two modules with one edge of weight 1 between them: m = 5, in = 2 + 2, degrees 5 and 5, so Q = 4/5 − ½ = 0.3."""
    weights, labels = [torch.tensor([[2.0, 1.0], [0.0, 2.0]])], [torch.tensor([0, 1]), torch.tensor([0, 1])]
    assert modularity(weights, labels, resolution=1.0) == pytest.approx(0.3)
    assert modularity(weights, labels, resolution=0.5) == pytest.approx(0.55)
    assert modularity(weights, [torch.tensor([0, 0])] * 2, resolution=1.0) == pytest.approx(0)


@pytest.mark.parametrize("resolution", [0.5, 1.0, 2.0])
def test_modularity_equals_that_of_networkx(resolution: float) -> None:
    edges, _ = block_edges([[3, 4], [5, 2], [2, 2]], low=0.3, seed=1)
    modules = find_with_one_cutoff(edges, resolution=resolution)
    graph = networkx.Graph()
    for layer, layer_edges in enumerate(modules.weights):
        for target, source in layer_edges.nonzero().tolist():
            graph.add_edge((layer, source), (layer + 1, target), weight=float(layer_edges[target, source]))
    groups: dict[int, set] = {}
    for layer, labels in enumerate(modules.labels):
        for node, module in enumerate(labels.tolist()):
            groups.setdefault(module, set()).add((layer, node))
    want = networkx.community.modularity(graph, groups.values(), resolution=resolution)
    assert modularity(modules.weights, modules.labels, resolution=resolution) == pytest.approx(want)
    assert modules.score == pytest.approx(networkx.community.modularity(graph, groups.values()))


@pytest.mark.parametrize("sizes", [[[4, 4]] * 3, [[5, 3], [2, 6], [4, 4], [1, 2]], [[3, 3, 3], [4, 4, 4], [2, 3, 4]]])
def test_planted_modules_are_found(sizes: list[list[int]]) -> None:
    edges, true_blocks = block_edges(sizes, low=0.01, seed=0)
    modules = find_with_one_cutoff(edges)
    assert same_grouping(modules.labels, true_blocks)
    assert modules.n == len(sizes[0])
    largest = torch.tensor(sizes).sum(0).sort(descending=True).values
    assert torch.equal(modules.clusters.sum(1), largest)
    assert torch.equal(modules.clusters.sum(0), torch.tensor(sizes).sum(1))
    assert modules.score > 0.4


def test_modules_over_many_layers_are_cut_in_two_unless_resolution_is_low() -> None:
    edges, true_blocks = block_edges([[4, 4]] * 6, low=0.001, seed=0)
    assert find_with_one_cutoff(edges).n == 4  # each of the two blocks is cut between two layers
    assert same_grouping(find_with_one_cutoff(edges, resolution=0.5).labels, true_blocks)


def test_same_seed_gives_same_modules_and_more_starts_are_no_worse() -> None:
    rng = torch.Generator().manual_seed(0)
    edges = [10 ** (3 * torch.rand(40, 40, generator=rng, dtype=torch.float64) - 2) for _ in range(2)]
    one, again = (find_with_one_cutoff(edges, starts=1, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.labels, again.labels, strict=True))
    assert find_with_one_cutoff(edges, starts=20, seed=3).score >= one.score > 0


def test_weights_are_zero_for_edges_up_to_the_cutoff() -> None:
    E = torch.tensor([[100.0, 1.0], [0.0, 0.01]])
    assert cutoff_from_ablation(E, 2) == 1.0  # the second strongest edge
    torch.testing.assert_close(edge_weights(E, 0.01), torch.tensor([[4.0, 2.0], [0, 0]], dtype=torch.float64))
    torch.testing.assert_close(edge_weights(E, 1.0), torch.tensor([[2.0, 0.0], [0, 0]], dtype=torch.float64))


def test_constant_nodes_and_nodes_without_edges_are_in_no_module() -> None:
    edges, true_blocks = block_edges([[3, 3]] * 3, low=0.01, seed=2)
    # an additional first node in every layer, with strong edges to all nodes
    with_constant = [torch.nn.functional.pad(layer_edges, (1, 0, 1, 0), value=50.0) for layer_edges in edges]
    constant = [torch.arange(7) == 0] * 3
    modules = find_with_one_cutoff(with_constant, constant=constant)
    assert [int(labels[0]) for labels in modules.labels] == [NO_MODULE] * 3
    assert same_grouping([labels[1:] for labels in modules.labels], true_blocks)
    edges[0][:, 1] = 0  # node 1 of the first layer loses its edges
    assert int(find_with_one_cutoff(edges).labels[0][1]) == NO_MODULE
    assert find_with_one_cutoff(edges).clusters.sum() == 17  # of 3 · 6 nodes


@pytest.mark.parametrize(
    ("edges", "given", "says"),
    [
        ([], {}, "none given"),
        ([torch.ones(2, 3), torch.ones(2, 4)], {}, "pair 0 ends with 2 nodes, pair 1 begins with 4"),
        ([torch.ones(2, 2)], {"cutoff": 2.0}, "no edge is above its layer's cutoff"),
        ([torch.ones(2, 2)], {"cutoff": 0.0}, "must be above 0"),
        ([-torch.ones(2, 2)], {}, "none below 0"),
        ([torch.full((2, 2), torch.nan)], {}, "finite numbers"),
        (
            [torch.ones(2, 2)],
            {"constant": [torch.tensor([True, False])]},
            r"\[2\] nodes by layer; the edges have \[2, 2\]",
        ),
    ],
)
def test_invalid_graphs_are_rejected(edges: list[Tensor], given: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        find_with_one_cutoff(edges, **given)


def test_too_many_cutoffs_or_edges_are_rejected() -> None:
    with pytest.raises(UserError, match="2 for 1 pairs"):
        find_modules(
            [torch.ones(2, 2)], cutoffs=[0.1, 0.1], constant=None, options=ModularityOptions(1.0, 1, 1), seed=0
        )
    with pytest.raises(UserError, match="kept=5: of 4 edges"):
        cutoff_from_ablation(torch.ones(2, 2), 5)
