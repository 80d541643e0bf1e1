"""Rules that are nodes of a pruned suffix tree: K for each latent, or M for the whole dictionary.

Every suffix s has a shrunk mean code μ_s and a gain N_s (μ_s − μ_parent(s))², for each latent. The nodes with the largest gains are
kept and refitted: the value of a kept node is the mean code of the fit tokens whose longest kept suffix it is, shrunk towards the value
of its nearest kept ancestor. All latents are fitted at once, and any budget of rules is possible, so that dictionaries can be compared
at the same total number of rules. The rules have no other conditions than suffixes.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from crux.config.progress import track
from crux.sae.reading.conditions import Conditions, Kind, find_sorted
from crux.sae.reading.rules import Rules
from crux.sae.reading.sparse_codes import SparseCodes
from crux.sae.reading.suffix_tree import SuffixTree
from crux.sae.reading.token_classes import no_classes

BLOCK = 2**24
"""Number of gains, nodes × latents, that are held at a time; about 0.5 GB with what is computed from them."""


class RankedNodes(NamedTuple):
    """Pairs of a latent and a node, by latent and within a latent by descending gain."""

    latents: Int[np.ndarray, "pairs"]
    nodes: Int[np.ndarray, "pairs"]
    gains: Float[np.ndarray, "pairs"]
    """Reduction of the sum of squared errors by the node next to its parent; above 0."""
    totals: Float[np.ndarray, "pairs"]
    """Sum of the latent's codes over the fit tokens at the node."""

    def first(self, k: int) -> "RankedNodes":
        """Return the first k pairs of each latent."""
        starts = np.searchsorted(self.latents, self.latents)  # of each pair's latent
        return self.take(np.flatnonzero(np.arange(len(self.latents)) - starts < k))

    def take(self, chosen: Int[np.ndarray, "chosen"]) -> "RankedNodes":
        """Return some pairs, in the given order."""
        return RankedNodes(*(field[chosen] for field in self))


def rank_nodes(
    tree: SuffixTree, codes: SparseCodes, *, k: int, shrinkage: float, min_count: int, depth: int
) -> RankedNodes:
    """Return for each latent the k nodes with the largest gains, or all with a gain if there are fewer; ties by number.

    Args:
        tree: of the fit text.
        codes: of the fit text.
        shrinkage: κ, in tokens.
        min_count: nodes with fewer fit tokens are left out.
        depth: largest number of tokens of a suffix.
    """
    ranked = []
    for latent, gains, sums, nodes in _iterate_gains(
        tree, codes, shrinkage=shrinkage, min_count=min_count, depth=depth
    ):
        for column in range(gains.shape[1]):
            places = _largest(gains[:, column], k)
            pairs = nodes[places], gains[places, column], sums[places, column]
            ranked.append(RankedNodes(np.full(len(places), latent + column), *pairs))
    return RankedNodes(*(np.concatenate(fields) for fields in zip(*ranked, strict=True)))


def choose_nodes(
    tree: SuffixTree,
    codes: SparseCodes,
    *,
    total: int,
    weights: Float[np.ndarray, "n_latents"],
    shrinkage: float,
    min_count: int,
    depth: int,
) -> RankedNodes:
    """Return the `total` pairs of a latent and a node, over all latents, with the largest gain · weight; arguments as in `rank_nodes`.

    Args:
        weights: importance of a squared error of each latent's code, such as w̄ᵀ F w̄ ‖w‖² with the Fisher matrix F at the hook point and the
            decoder row w, or ‖w‖² for the squared error of the reconstruction; not negative.
    """
    kept = RankedNodes(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    least = 0.0  # what a pair of a further block must exceed
    for latent, gains, sums, nodes in _iterate_gains(
        tree, codes, shrinkage=shrinkage, min_count=min_count, depth=depth
    ):
        # latent by latent, so that of equal ones the first latent and the first node is kept, whatever the blocks are
        weighted = (gains * weights[latent : latent + gains.shape[1]]).ravel("F")
        places = np.flatnonzero(weighted > least)
        places = places[_largest(weighted[places], total)]
        columns, rows = np.divmod(places, len(nodes))
        block = RankedNodes(latent + columns, nodes[rows], gains[rows, columns], sums[rows, columns])
        together = RankedNodes(*(np.concatenate(fields) for fields in zip(kept, block, strict=True)))
        order = np.lexsort((together.nodes, together.latents, -together.gains * weights[together.latents]))
        kept = together.take(order[:total])
        if len(kept.gains) == total > 0:
            least = float(kept.gains[-1] * weights[kept.latents[-1]])
    return kept.take(np.lexsort((kept.nodes, -kept.gains, kept.latents)))


def refit_nodes(tree: SuffixTree, kept: RankedNodes, codes: SparseCodes, *, shrinkage: float) -> Rules:
    """Return the rules of the kept nodes.

    The tokens at a kept node whose longest kept suffix it is are those at the node without those at the kept nodes right below it, so
    their number and the sum of their codes follow from those of the nodes. The base, for tokens at no kept node, is shrunk towards
    the mean code.
    """
    n_latents = codes.n_latents
    mass = np.bincount(codes.latents, weights=codes.values, minlength=n_latents)
    # the roots of all latents come first, then the kept nodes: one forest, in which parents are `above`
    latents = np.concatenate([np.arange(n_latents), kept.latents])
    nodes = np.concatenate([np.zeros(n_latents, np.int64), kept.nodes])
    above = _find_kept_above(tree, latents, nodes)
    counts = tree.counts[nodes].astype(np.float64)
    totals = np.concatenate([mass, kept.totals])
    below = np.arange(len(nodes)) >= n_latents
    own_counts = counts - np.bincount(above[below], weights=counts[below], minlength=len(nodes))
    own_totals = totals - np.bincount(above[below], weights=totals[below], minlength=len(nodes))
    values = np.zeros(len(nodes))
    mean = mass / max(tree.counts[0], 1)
    values[:n_latents] = (own_totals[:n_latents] + shrinkage * mean) / (own_counts[:n_latents] + shrinkage)
    depths = tree.depths()[nodes]
    for depth in range(1, len(tree.keys) + 1):
        here = np.flatnonzero(depths == depth)
        values[here] = (own_totals[here] + shrinkage * values[above[here]]) / (own_counts[here] + shrinkage)
    values = np.maximum(values, 0)  # rounding of differences of sums
    used, condition = np.unique(kept.nodes, return_inverse=True)
    conditions = Conditions(np.full(len(used), Kind.SUFFIX), tree.tokens_of(used))
    indptr = np.searchsorted(kept.latents, np.arange(n_latents + 1))
    increments = values[below] - values[above[below]]
    return Rules(
        conditions, no_classes(tree.vocab), indptr, condition, values[below], increments, kept.gains,
        tree.counts[kept.nodes], kept.totals, values[:n_latents], mass,
    )  # fmt: skip


def _iterate_gains(
    tree: SuffixTree, codes: SparseCodes, *, shrinkage: float, min_count: int, depth: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield for each block of latents the first one, gains and sums (nodes × latents), and the nodes, among which the root has no gain."""
    nodes = np.arange(tree.first[depth])
    nodes = nodes[(tree.counts >= min_count)[nodes] | (nodes == 0)]
    parents = np.maximum(np.searchsorted(nodes, tree.parent[nodes]), 0)  # a parent has at least the count of its child
    levels = np.searchsorted(nodes, tree.first[: depth + 1])
    member = tree.indicator()[nodes]
    counts = tree.counts[nodes][:, None].astype(np.float64)
    width = max(1, BLOCK // len(nodes))
    by_latent = codes.matrix().tocsc()
    for latent in track(range(0, codes.n_latents, width), "ranking rules"):
        sums = (member @ by_latent[:, latent : latent + width].astype(np.float64)).toarray()
        means = sums / counts
        for first, last in pairwise(levels.tolist()):
            part = slice(first, last)
            means[part] = (sums[part] + shrinkage * means[parents[part]]) / (counts[part] + shrinkage)
        gains = counts * np.square(means - means[parents])
        gains[0] = 0
        yield latent, gains, sums, nodes


def _largest(values: Float[np.ndarray, "n"], k: int) -> Int[np.ndarray, "m"]:
    """Return the places of the k largest values above 0, the largest first; of equal values the first ones."""
    if k < len(values):
        least = np.partition(values, len(values) - k)[len(values) - k] if k else np.inf
        places = np.flatnonzero((values >= least) & (values > 0))
    else:
        places = np.flatnonzero(values > 0)
    return places[np.argsort(-values[places], kind="stable")[:k]]


def _find_kept_above(
    tree: SuffixTree, latents: Int[np.ndarray, "kept"], nodes: Int[np.ndarray, "kept"]
) -> Int[np.ndarray, "kept"]:
    """Return the place of the nearest kept ancestor of each kept node of a latent; of a root, its own."""
    keys = latents * tree.n_nodes + nodes
    order = np.argsort(keys)
    above, up = np.full(len(nodes), -1), np.maximum(tree.parent[nodes], 0)
    while (missing := np.flatnonzero(above < 0)).size:
        place = find_sorted(keys[order], latents[missing] * tree.n_nodes + up[missing])
        above[missing] = np.where(place >= 0, order[place], -1)
        up[missing] = np.maximum(tree.parent[up[missing]], 0)
    return above
