"""The suffixes among which the rules of a latent are sought: those with the largest gains, next to all and next to their parents."""

from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from crux.sae.reading.conditions import find_sorted
from crux.sae.reading.context_features import split_gains
from crux.sae.reading.sparse_matrices import size_of
from crux.sae.reading.suffix_tree import Children, SuffixTree

MIN_COUNT = 3
"""Least number of fit tokens of a suffix that may become a rule."""

N_BASES = 3
"""Suffixes of each latent that are tried as a part of a conjunction."""

LEAST_GAIN = 1e-3
"""A child without any codes is not a candidate if its gain is below this share of the latent's largest gain."""


class SuffixPool(NamedTuple):
    """Candidates of a block of latents; the first one is the root, which is no rule."""

    nodes: Int[np.ndarray, "latents candidates"]
    """Nodes of the suffix tree, ascending; −1 behind the last."""
    totals: Float[np.ndarray, "latents candidates"]
    """Sums of the codes at the nodes."""
    ancestors: Int[np.ndarray, "latents candidates 3"]
    """Places of the candidates that are ancestors, the nearest first; −1 behind the last."""
    bases: Int[np.ndarray, "latents bases"]
    """Nodes to try in conjunctions: the two best single tokens and the best longer suffix; −1 if there is none."""


def suffix_pool(
    tree: SuffixTree,
    children: Children,
    sums: scipy.sparse.csc_matrix,
    *,
    size: int,
    shrinkage: float,
) -> SuffixPool:
    """Return the candidates of all latents of a block.

    Half of them have the largest gains of a split from all tokens; the other half the largest N_s (μ_s − μ_parent(s))² of shrunk means,
    among them suffixes at which the latent never fires although it fires at the parent.

    Args:
        children: `children_by_count` of the tree.
        sums: sums of the codes, nodes × latents.
        size: largest number of candidates of a latent.
    """
    depths = tree.depths()
    chosen, bases = [], []
    for latent in range(size_of(sums)[1]):
        column = slice(sums.indptr[latent], sums.indptr[latent + 1])
        nodes, base = _choose(
            tree,
            depths,
            children,
            sums.indices[column].astype(np.int64),
            sums.data[column],
            size=size,
            shrinkage=shrinkage,
        )
        chosen.append(nodes)
        bases.append(base)
    width = 1 + max(len(nodes) for nodes in chosen)
    table = np.full((len(chosen), width), -1, np.int64)
    table[:, 0] = 0
    for latent, nodes in enumerate(chosen):
        table[latent, 1 : 1 + len(nodes)] = nodes
    return SuffixPool(table, _totals(table, sums), _ancestors(table, tree), np.stack(bases))


def _choose(
    tree: SuffixTree,
    depths: np.ndarray,
    children: Children,
    nodes: np.ndarray,
    totals: np.ndarray,
    *,
    size: int,
    shrinkage: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the candidates of one latent without the root, and its bases; `nodes` are those where it fires, ascending."""
    bases = np.full(N_BASES, -1)
    if not len(nodes) or nodes[0] != 0:
        return np.zeros(0, np.int64), bases
    n = tree.counts[nodes].astype(float)
    parents = find_sorted(nodes, tree.parent[nodes])
    parents[0] = 0
    depth = depths[nodes]
    mean = totals[0] / n[0]
    shrunk = np.full(len(nodes), mean)
    for d in (1, 2, 3):
        here = np.flatnonzero(depth == d)
        above = np.where(parents[here] >= 0, shrunk[parents[here]], 0.0)
        shrunk[here] = (totals[here] + shrinkage * above) / (n[here] + shrinkage)
    from_all = split_gains(totals, n, totals[0], n[0], shrinkage=shrinkage, min_count=MIN_COUNT)
    enough = np.flatnonzero((n >= MIN_COUNT) & (depth > 0))
    from_parent = n[enough] * (shrunk[enough] - shrunk[parents[enough]]) ** 2
    half = size // 2
    best = enough[largest(from_all[enough], half)]
    one, longer = enough[depth[enough] == 1], enough[depth[enough] > 1]
    for place, index in enumerate([*one[largest(from_all[one], 2)], *longer[largest(from_all[longer], 1)]]):
        bases[place] = nodes[index]
    kth = np.sort(from_parent)[-half] if len(from_parent) >= half else 0.0
    least_gain = max(kth, LEAST_GAIN * from_all.max(initial=0.0), 1e-12)
    inner = np.flatnonzero((depth < 3) & (shrunk > 0))
    silent, silent_gains = _silent(tree, children, nodes, nodes[inner], shrunk[inner], least_gain, shrinkage=shrinkage)
    both = np.concatenate([nodes[enough], silent])
    second = both[largest(np.concatenate([from_parent, silent_gains]), half)]
    return np.unique(np.concatenate([nodes[best], second, bases[bases >= 0]])), bases


def _silent(
    tree: SuffixTree,
    children: Children,
    nodes: np.ndarray,
    parents: np.ndarray,
    means: np.ndarray,
    least_gain: float,
    *,
    shrinkage: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return children at which the latent never fires, N (μ_parent N / (N + κ))² ≥ `least_gain`, and these gains."""
    counts = np.arange(children.largest + 1, dtype=float)
    least = np.searchsorted(counts**3 / (counts + shrinkage) ** 2, least_gain / means**2)
    found, parent = children.frequent(parents, np.maximum(least, MIN_COUNT))
    unheard = find_sorted(nodes, found) < 0
    found, n = found[unheard], tree.counts[found[unheard]].astype(float)
    return found, n**3 / (n + shrinkage) ** 2 * means[parent[unheard]] ** 2


def largest(values: Float[np.ndarray, "values"], n: int) -> Int[np.ndarray, "chosen"]:
    """Return the places of the n largest values, the largest first; of equal values, the earlier first."""
    if len(values) > 4 * n:
        places = np.flatnonzero(values >= np.partition(values, -n)[-n]) if n else np.zeros(0, np.int64)
        return places[np.argsort(-values[places], kind="stable")[:n]]
    return np.argsort(-values, kind="stable")[:n]


def _totals(table: np.ndarray, sums: scipy.sparse.csc_matrix) -> np.ndarray:
    totals = np.zeros(table.shape)
    for latent, nodes in enumerate(table):
        column = slice(sums.indptr[latent], sums.indptr[latent + 1])
        place = find_sorted(sums.indices[column], nodes)
        totals[latent, place >= 0] = sums.data[column][place[place >= 0]]
    return totals


def _ancestors(table: np.ndarray, tree: SuffixTree) -> np.ndarray:
    """Return the places of each candidate's ancestors that are candidates, the nearest first."""
    found = np.full((*table.shape, 3), -1, np.int64)
    rows = np.arange(len(table))[:, None]
    # rows ascend, and so do the nodes of a row once what is behind the last is left out
    there = table >= 0
    keys = (rows * tree.n_nodes + table)[there]
    places = np.broadcast_to(np.arange(table.shape[1]), table.shape)[there]
    filled = np.zeros(table.shape, np.int64)
    up = np.where(there, table, 0)
    for _ in range(3):
        up = np.where(up > 0, tree.parent[up], -1)
        place = find_sorted(keys, (rows * tree.n_nodes + up).reshape(-1)).reshape(table.shape)
        held = (up >= 0) & (place >= 0) & there
        i, j = np.nonzero(held)
        found[i, j, filled[i, j]] = places[place[i, j]]
        filled[i, j] += 1
        up = np.maximum(up, 0)
    return found
