"""Modules of an interaction graph: groups of basis directions, over all layers, that interact mainly with each other.

The graph has one node per direction and layer, and undirected edges between consecutive layers with weight log10(E / ε_layer), or 0 below
ε_layer, as in Bushnaq et al. (2405.10927, §5) and Apollo's rib. The Leiden algorithm (graspologic-native) searches the partition of the
nodes with the highest modularity (Newman)

    Q = Σ_modules [ in / m − γ (degree / 2m)² ],

where `in` is the total weight inside a module, `degree` the sum of the weights at its nodes, m the total weight of the graph and γ the
resolution.

In a graph of many layers the best partition may cut a module between two layers: for two equally wide blocks over five or more pairs of
layers and γ = 1 it has four modules. Use fewer layers or a smaller γ to keep a block in one module.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from graspologic_native import leiden  # pyright: ignore[reportAttributeAccessIssue] (of Rust, without stubs)
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.degeneracy.basis_options import ModularityOptions

NO_MODULE = -1
"""Module of a node without edges."""


class Modules(NamedTuple):
    """The modules of an interaction graph."""

    labels: list[Int[Tensor, "node"]]
    """Module of each node, per layer. Module 0 has the most nodes; nodes without edges have `NO_MODULE`."""
    score: float
    """Q at γ = 1, whichever γ was used to find the modules, so that scores are comparable."""
    clusters: Int[Tensor, "module layer"]
    """Number of nodes of each module in each layer."""
    weights: list[Float[Tensor, "to from"]]
    """log10(E / ε_layer), clipped at 0."""

    @property
    def n(self) -> int:
        """Number of modules."""
        return len(self.clusters)


def cutoff_from_ablation(edges: Float[Tensor, "to from"], kept: int) -> float:
    """Return the cutoff ε of a layer: the size of the weakest of the `kept` strongest edges, as found by an ablation."""
    if not 1 <= kept <= edges.numel():
        raise UserError(f"kept={kept}: of {edges.numel()} edges, 1 to all of them can be kept")
    return float(edges.flatten().sort(descending=True).values[kept - 1])


def edge_weights(edges: Float[Tensor, "to from"], cutoff: float) -> Float[Tensor, "to from"]:
    """Return the weights log10(E / ε), or 0 for edges up to ε.

    Raises:
        UserError: if the cutoff is not above 0, or an edge is negative or not finite.
    """
    if not cutoff > 0:
        raise UserError(f"cutoff={cutoff}: the smallest edge that counts must be above 0")
    if not bool((edges >= 0).all()) or not bool(edges.isfinite().all()):
        raise UserError("edges: must be finite numbers, none below 0")
    return (edges.double() / cutoff).clamp(min=1).log10()


def find_modules(
    edges: Sequence[Float[Tensor, "_to _from"]],
    *,
    cutoffs: Sequence[float],
    constant: Sequence[Bool[Tensor, "_node"]] | None,
    options: ModularityOptions,
    seed: int,
) -> Modules:
    """Return the best partition of the graph of all layers from several runs of Leiden.

    Args:
        edges: E between each layer and the next, [n_to, n_from].
        cutoffs: ε for each pair of consecutive layers.
        constant: per layer, a mask of the nodes that stand for a constant and are left out; None: there are none.

    Raises:
        UserError: if the layers' sizes do not match, or no edge is above its cutoff.
    """
    sizes = _check_layer_sizes(edges, cutoffs)
    # the graph is small, and Leiden runs on the CPU
    weights = [edge_weights(layer_edges.cpu(), cutoff) for layer_edges, cutoff in zip(edges, cutoffs, strict=True)]
    if constant is not None:
        if [len(mask) for mask in constant] != sizes:
            raise UserError(f"constant: {[len(mask) for mask in constant]} nodes by layer; the edges have {sizes}")
        for i, layer_weights in enumerate(weights):
            layer_weights[constant[i + 1].cpu()] = 0
            layer_weights[:, constant[i].cpu()] = 0
    edge_list = _list_edges(weights, sizes)
    if not edge_list:
        raise UserError("no edge is above its layer's cutoff: there is no graph to look for modules in")
    _, module_of_node = leiden(
        edge_list, resolution=options.resolution, iterations=options.iterations, seed=seed, trials=options.starts
    )
    labels = torch.full((sum(sizes),), NO_MODULE)
    for node, module in module_of_node.items():
        labels[int(node)] = module
    modules = list(_number_by_size(labels).split(sizes))
    n = max(int(layer.max()) for layer in modules) + 1
    clusters = torch.stack([(layer[None] == torch.arange(n)[:, None]).sum(1) for layer in modules], 1)
    return Modules(modules, modularity(weights, modules, resolution=1.0), clusters, weights)


def modularity(
    weights: Sequence[Float[Tensor, "_to _from"]], modules: Sequence[Int[Tensor, "_node"]], *, resolution: float
) -> float:
    """Return the modularity Q of a partition, given the module of each node per layer."""
    m = sum(float(layer_weights.sum()) for layer_weights in weights)
    inside = 0.0
    # shifted by 1, so that index 0 is that of nodes without a module, −1, whose degree is 0
    degree = torch.zeros(max(int(layer.max()) for layer in modules) + 2, dtype=torch.float64)
    for i, layer_weights in enumerate(weights):
        source, target = modules[i], modules[i + 1]
        inside += float(layer_weights[target[:, None] == source[None]].sum())
        degree.index_add_(0, source + 1, layer_weights.sum(0).double())
        degree.index_add_(0, target + 1, layer_weights.sum(1).double())
    return inside / m - resolution * float((degree / (2 * m)).square().sum())


def _check_layer_sizes(edges: Sequence[Tensor], cutoffs: Sequence[float]) -> list[int]:
    """Return the number of nodes of each layer, after checking that all edges and cutoffs fit."""
    if not edges:
        raise UserError("edges: none given; there must be a matrix for each pair of consecutive layers")
    if len(cutoffs) != len(edges):
        raise UserError(f"cutoffs: {len(cutoffs)} for {len(edges)} pairs of layers; one for each is needed")
    for i, (a, b) in enumerate(itertools.pairwise(edges)):
        if a.shape[0] != b.shape[1]:
            raise UserError(f"edges: pair {i} ends with {a.shape[0]} nodes, pair {i + 1} begins with {b.shape[1]}")
    return [edges[0].shape[1], *(layer_edges.shape[0] for layer_edges in edges)]


def _list_edges(weights: Sequence[Tensor], sizes: Sequence[int]) -> list[tuple[str, str, float]]:
    """Return (node, node, weight) of every edge with non-zero weight; nodes are numbered over all layers."""
    edge_list, first = [], 0
    for i, layer_weights in enumerate(weights):
        first_of_next = first + sizes[i]
        for target, source in layer_weights.nonzero().tolist():
            edge_list.append((str(first + source), str(first_of_next + target), float(layer_weights[target, source])))
        first = first_of_next
    return edge_list


def _number_by_size(modules: Int[Tensor, "node"]) -> Int[Tensor, "node"]:
    """Renumber the modules by descending size; those of equal size by their first node."""
    numbers = [m for m in modules.unique().tolist() if m != NO_MODULE]
    order = sorted(numbers, key=lambda m: (-int((modules == m).sum()), int((modules == m).nonzero()[0])))
    renamed = torch.full_like(modules, NO_MODULE)
    for new, old in enumerate(order):
        renamed[modules == old] = new
    return renamed
