"""The tree of all suffixes of up to three tokens in a text, with the codes of any number of latents summed at every node.

Shrunk means: a node's mean code is pulled towards that of the same suffix without its oldest token, up to the mean over all tokens:
μ_s = (S_s + κ μ_parent(s)) / (N_s + κ), where N_s is the number of tokens at which the suffix ends and S_s the sum of the codes there.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int

from crux.sae.reading.conditions import DEPTH, expand_ranges, find_sorted, pack_suffixes, token_ages
from crux.sae.reading.sparse_matrices import make_csr, make_indicator


class SuffixTree(NamedTuple):
    """The suffixes that occur in a text; node 0 is the root, the empty suffix, and longer suffixes have larger numbers."""

    vocab: int
    """Size of the vocabulary."""
    keys: tuple[Int[np.ndarray, "_"], ...]
    """The packed tokens (`pack_suffixes`) of the nodes of depth 1, 2, 3, ascending."""
    parent: Int[np.ndarray, "nodes"]
    """The node without the oldest token; −1 for the root."""
    counts: Int[np.ndarray, "nodes"]
    """Number of tokens at which the suffix ends."""
    at: Int[np.ndarray, "tokens depth"]
    """The nodes of the last 1, 2, 3 tokens at each token of the text; −1 if its text is shorter; int32."""

    @property
    def n_nodes(self) -> int:
        """Number of nodes, the root included."""
        return len(self.parent)

    @property
    def first(self) -> list[int]:
        """The first node of depth 1, 2, 3, and the number of nodes."""
        return np.cumsum([1, *(len(keys) for keys in self.keys)]).tolist()

    def depths(self) -> Int[np.ndarray, "nodes"]:
        """Return the number of tokens of each node."""
        return np.searchsorted(self.first, np.arange(self.n_nodes), side="right")

    def indicator(self) -> scipy.sparse.csr_matrix:
        """Return a matrix of ones, nodes × tokens, that says which tokens end with which suffix; every token is at the root."""
        n = len(self.at)
        rows, columns = np.nonzero(self.at >= 0)
        nodes = np.concatenate([np.zeros(n, np.int32), self.at[rows, columns]])
        tokens = np.concatenate([np.arange(n, dtype=np.int32), rows.astype(np.int32)])
        return make_indicator(nodes, tokens, (self.n_nodes, n))

    def find(
        self, windows: Int[np.ndarray, "windows context"], begins: Bool[np.ndarray, "tokens"]
    ) -> Int[np.ndarray, "tokens depth"]:
        """Return the nodes of the last 1, 2, 3 tokens at each token of another text; −1 if they did not occur."""
        tokens, age = windows.reshape(-1), token_ages(begins)
        found = np.full((len(tokens), len(self.keys)), -1, np.int32)
        for depth, keys in enumerate(self.keys, start=1):
            place = find_sorted(keys, pack_suffixes(tokens, age, depth, self.vocab))
            found[:, depth - 1] = np.where(place >= 0, place + self.first[depth - 1], -1)
        return found

    def tokens_of(self, nodes: Int[np.ndarray, "chosen"]) -> Int[np.ndarray, "chosen depth"]:
        """Return the tokens of nodes, the current one first, −1 behind the last."""
        tokens = np.full((len(nodes), DEPTH), -1, np.int64)
        for depth, keys in enumerate(self.keys, start=1):
            here = np.flatnonzero((nodes >= self.first[depth - 1]) & (nodes < self.first[depth]))
            packed = keys[nodes[here] - self.first[depth - 1]]
            for lag in reversed(range(depth)):
                tokens[here, lag] = packed % self.vocab
                packed = packed // self.vocab
        return tokens


def grow_suffix_tree(
    windows: Int[np.ndarray, "windows context"], begins: Bool[np.ndarray, "tokens"], *, vocab: int
) -> SuffixTree:
    """Return the tree of the suffixes of one, two and three tokens in a text; none reaches beyond the beginning of its text."""
    tokens, age = windows.reshape(-1), token_ages(begins)
    at = np.full((len(tokens), DEPTH), -1, np.int32)
    all_keys, parents, counts = [], [np.array([-1])], [np.array([len(tokens)])]
    first, parent_keys = 1, np.zeros(1, np.int64)
    for depth in range(1, DEPTH + 1):
        packed = pack_suffixes(tokens, age, depth, vocab)
        there = packed >= 0
        keys, places, count = np.unique(packed[there], return_inverse=True, return_counts=True)
        at[there, depth - 1] = places + first
        parents.append(np.searchsorted(parent_keys, keys // vocab) + first - len(parent_keys))
        counts.append(count)
        all_keys.append(keys)
        first, parent_keys = first + len(keys), keys
    return SuffixTree(vocab, tuple(all_keys), np.concatenate(parents), np.concatenate(counts), at)


class BackOff(NamedTuple):
    """The shrunk mean at any node as a linear function of the sums at the node and its ancestors."""

    nodes: Int[np.ndarray, "leaves 4"]
    """The root and the nodes of depth 1, 2, 3; −1 if they do not exist."""
    weights: Float[np.ndarray, "leaves 4"]
    """Factors of the sums of the codes at these nodes; 0 where there is no node."""

    def matrix(self, n_nodes: int) -> scipy.sparse.csr_matrix:
        """Return the weights of all nodes but the root as a matrix, leaves × nodes."""
        rows, columns = np.nonzero(self.nodes[:, 1:] >= 0)
        shape = (len(self.nodes), n_nodes)
        return make_csr(self.weights[:, 1:][rows, columns], rows, self.nodes[:, 1:][rows, columns], shape)


def back_off_weights(
    counts: Int[np.ndarray, "nodes"], paths: Int[np.ndarray, "leaves depth"], *, shrinkage: float
) -> BackOff:
    """Return the weights w of the shrunk mean of each leaf, μ_leaf = Σ_s w_s S_s over the nodes from the root to the leaf.

    `paths` has the nodes of depth 1, 2, … of each leaf; −1 behind the last. With a_s = κ / (N_s + κ), the weight of a node is the product
    of a over the deeper nodes of its path, over N_s + κ (the root: over N).
    """
    nodes = np.concatenate([np.zeros((len(paths), 1), np.int64), paths], axis=1)
    there = nodes >= 0
    denominator = np.where(there, counts[nodes] + shrinkage, 1.0)
    pulled = np.where(there, shrinkage / denominator, 1.0)
    below = np.cumprod(pulled[:, :0:-1], axis=1)[:, ::-1]  # product of a over the nodes at and below each depth from 1
    weights = np.concatenate([below, np.ones((len(paths), 1))], axis=1)
    denominator[:, 0] = max(counts[0], 1)
    return BackOff(nodes, np.where(there, weights / denominator, 0.0))


class Children(NamedTuple):
    """The children of all nodes, those of a node one after the other by falling count."""

    nodes: Int[np.ndarray, "nodes-1"]
    starts: Int[np.ndarray, "nodes+1"]
    """Where the children of each node begin."""
    keys: Int[np.ndarray, "nodes-1"]
    """Parent and falling count of each child as one number; ascending."""
    largest: int
    """Largest count of any node but the root."""

    def frequent(
        self, parents: Int[np.ndarray, "parents"], least: Int[np.ndarray, "parents"]
    ) -> tuple[Int[np.ndarray, "found"], Int[np.ndarray, "found"]]:
        """Return the children that occur at least `least` times, and the index of their parent, for all parents at once."""
        wanted = parents * (self.largest + 2) + (self.largest + 1 - np.minimum(least, self.largest + 1))
        ends = np.searchsorted(self.keys, wanted, side="right")
        lengths = np.maximum(ends - self.starts[parents], 0)
        found = self.nodes[expand_ranges(self.starts[parents], lengths)]
        return found, np.repeat(np.arange(len(parents)), lengths)


def children_by_count(tree: SuffixTree) -> Children:
    """Return the children of all nodes."""
    nodes = np.arange(1, tree.n_nodes)
    order = np.lexsort((nodes, -tree.counts[1:], tree.parent[1:]))
    parents, counts = tree.parent[1:][order], tree.counts[1:][order]
    largest = int(tree.counts[1:].max(initial=0))
    starts = np.searchsorted(parents, np.arange(tree.n_nodes + 1))
    return Children(nodes[order], starts, parents * (largest + 2) + (largest + 1 - counts), largest)
