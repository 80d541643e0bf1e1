"""Modules of an interaction graph: groups of basis directions, over all layers, that interact among themselves (Leiden, Newman's Q).

The nodes of all layers and, between consecutive layers, undirected edges with weight log10(E / ε_layer), 0 below ε_layer: the
weights of Bushnaq et al. 2405.10927 (§5) and of Apollo's rib. Leiden (graspologic-native) looks for the grouping with the highest

    Q = Σ_modules [ in / m − γ (degree / 2m)² ],

`in` the weight inside a module, `degree` the summed weights at its nodes, m that of the whole graph, γ the resolution.

A long chain of layers is cut across before it is split along: two blocks of equal width over five or more pairs of layers have their
maximum at γ = 1 in four pieces. Fewer layers at a time, or a smaller γ, keep a block together.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from graspologic_native import leiden  # pyright: ignore[reportAttributeAccessIssue] (of Rust, without stubs)
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.degeneracy.basis_options import Modularity

ALONE = -1
"""Module of a node without edges."""


class Modules(NamedTuple):
    """What was found."""

    of: list[Int[Tensor, "node"]]
    """Module of each node, by layer; 0 has most nodes; `ALONE` without edges."""
    score: float
    """Q at resolution 1, whatever γ it was found with, so that scores compare."""
    clusters: Int[Tensor, "module layer"]
    """How many nodes each module has in each layer."""
    weights: list[Float[Tensor, "to from"]]
    """log10(E / ε_layer), clipped at 0."""

    @property
    def n(self) -> int:
        """How many modules there are."""
        return len(self.clusters)


def smallest_kept(edges: Float[Tensor, "to from"], kept: int) -> float:
    """ε of a layer from an ablation: the size of the last edge, in falling order, that is needed."""
    if not 1 <= kept <= edges.numel():
        raise UserError(f"kept={kept}: of {edges.numel()} edges, 1 to all of them can be kept")
    return float(edges.flatten().sort(descending=True).values[kept - 1])


def edge_weights(edges: Float[Tensor, "to from"], cutoff: float) -> Float[Tensor, "to from"]:
    """log10(E / ε), 0 below ε: an edge of just ε has no weight left.

    Raises:
        UserError: for a cutoff that is not above 0, and edges that are no non-negative numbers.
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
    options: Modularity,
    seed: int,
) -> Modules:
    """Return the best of several runs of Leiden on the graph of all layers.

    Args:
        edges: E between each layer and the next, [n_to, n_from].
        cutoffs: ε of each pair of layers.
        constant: by layer, the nodes that stand for a constant and are left out; None: there are none.

    Raises:
        UserError: layers that do not fit together, and a graph without edges above the cutoffs.
    """
    sizes = _sizes(edges, cutoffs)
    weights = [edge_weights(of, cutoff) for of, cutoff in zip(edges, cutoffs, strict=True)]
    if constant is not None:
        if [len(out) for out in constant] != sizes:
            raise UserError(f"constant: {[len(out) for out in constant]} nodes by layer; the edges have {sizes}")
        for i, of in enumerate(weights):
            of[constant[i + 1]] = 0
            of[:, constant[i]] = 0
    listed = _listed(weights, sizes)
    if not listed:
        raise UserError("no edge is above its layer's cutoff: there is no graph to look for modules in")
    _, found = leiden(
        listed, resolution=options.resolution, iterations=options.iterations, seed=seed, trials=options.starts
    )
    flat = torch.full((sum(sizes),), ALONE)
    for node, module in found.items():
        flat[int(node)] = module
    of = list(_by_size(flat).split(sizes))
    n = max(int(module.max()) for module in of) + 1
    clusters = torch.stack([(layer[None] == torch.arange(n)[:, None]).sum(1) for layer in of], 1)
    return Modules(of, modularity(weights, of, resolution=1.0), clusters, weights)


def modularity(
    weights: Sequence[Float[Tensor, "_to _from"]], of: Sequence[Int[Tensor, "_node"]], *, resolution: float
) -> float:
    """Q of a grouping of the nodes."""
    m = sum(float(between.sum()) for between in weights)
    inside, degree = 0.0, torch.zeros(max(int(module.max()) for module in of) + 2, dtype=torch.float64)
    for i, between in enumerate(weights):
        before, behind = of[i], of[i + 1]
        inside += float(between[behind[:, None] == before[None]].sum())
        degree.index_add_(0, before + 1, between.sum(0).double())
        degree.index_add_(0, behind + 1, between.sum(1).double())
    return inside / m - resolution * float((degree / (2 * m)).square().sum())


def _sizes(edges: Sequence[Tensor], cutoffs: Sequence[float]) -> list[int]:
    if not edges:
        raise UserError("edges: none given; there must be a matrix for each pair of consecutive layers")
    if len(cutoffs) != len(edges):
        raise UserError(f"cutoffs: {len(cutoffs)} for {len(edges)} pairs of layers; one for each is needed")
    for i, (a, b) in enumerate(itertools.pairwise(edges)):
        if a.shape[0] != b.shape[1]:
            raise UserError(f"edges: pair {i} ends with {a.shape[0]} nodes, pair {i + 1} begins with {b.shape[1]}")
    return [edges[0].shape[1], *(of.shape[0] for of in edges)]


def _listed(weights: Sequence[Tensor], sizes: Sequence[int]) -> list[tuple[str, str, float]]:
    """(node, node, weight) of every edge that has weight."""
    listed, first = [], 0
    for i, between in enumerate(weights):
        behind = first + sizes[i]
        for to, come in between.nonzero().tolist():
            listed.append((str(first + come), str(behind + to), float(between[to, come])))
        first = behind
    return listed


def _by_size(modules: Int[Tensor, "node"]) -> Int[Tensor, "node"]:
    """Numbered anew: the largest is 0, of equal ones the one that begins first."""
    found = [m for m in modules.unique().tolist() if m != ALONE]
    order = sorted(found, key=lambda m: (-int((modules == m).sum()), int((modules == m).nonzero()[0])))
    renamed = torch.full_like(modules, ALONE)
    for new, old in enumerate(order):
        renamed[modules == old] = new
    return renamed
