"""Means of activations by suffix: what the last tokens say about an activation without any dictionary.

Rules give every latent a code that depends on the last tokens. The line without a dictionary gives the activation itself one mean vector
for each of M suffixes: those with the largest N_s ‖m_s − m_parent(s)‖², where m_s is the mean of x at the suffix s, shrunk towards that of
the suffix without its oldest token:

    m_s = (Σ_{t at s} x_t + κ m_parent(s)) / (N_s + κ),    m_root = mean of x

Without a limit on the suffixes, the prediction is linear in x: with codes in place of x, decoding the predicted codes gives the
prediction of the reconstruction. So rules without a limit recover nothing that depends on the dictionary.
"""

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int

from crux.config.progress import track
from crux.sae.reading.suffix_tree import SuffixTree

BLOCK = 2**25
"""Number of means, nodes × dimensions, that are held at a time; 256 MB in float64."""


def rank_suffixes(
    tree: SuffixTree, x: Float[np.ndarray, "fit_tokens d"], *, shrinkage: float, min_count: int, depth: int
) -> Int[np.ndarray, "ranked"]:
    """Return the nodes by descending N_s ‖m_s − m_parent(s)‖², without the root; ties by number.

    Args:
        tree: of the fit text.
        x: the activations of the fit text; may be memory-mapped.
        shrinkage: κ, in tokens.
        min_count: nodes with fewer fit tokens are left out.
        depth: largest number of tokens in a suffix.
    """
    gains = np.zeros(tree.n_nodes)
    for columns in track(_column_blocks(x, tree.n_nodes), "ranking suffixes"):
        means = _shrink_means(tree, np.asarray(x[:, columns], np.float64), shrinkage=shrinkage, depth=depth)
        gains += tree.counts * np.square(means - means[np.maximum(tree.parent, 0)]).sum(1)
    able = np.arange(1, tree.first[depth])
    able = able[tree.counts[able] >= min_count]
    return able[np.argsort(-gains[able], kind="stable")]


def predict_from_all(
    tree: SuffixTree,
    x: Float[np.ndarray, "fit_tokens d"],
    found: Int[np.ndarray, "tokens depths"],
    *,
    shrinkage: float,
    depth: int,
) -> Float[np.ndarray, "tokens d"]:
    """Return the shrunk mean of x at each token's longest suffix that occurs in the fit text, in float32.

    Args:
        found: the nodes of the tokens, from `SuffixTree.find`.
    """
    longest = np.maximum(found[:, :depth].max(1), 0)  # longer suffixes have larger numbers, and the root is 0
    predicted = np.empty((len(found), x.shape[1]), np.float32)
    for columns in track(_column_blocks(x, tree.n_nodes), "means by suffix"):
        means = _shrink_means(tree, np.asarray(x[:, columns], np.float64), shrinkage=shrinkage, depth=depth)
        predicted[:, columns] = means[longest]
    return predicted


def predict_from_some(
    tree: SuffixTree,
    kept: Int[np.ndarray, "m"],
    x: Float[np.ndarray, "fit_tokens d"],
    found: Int[np.ndarray, "tokens depths"],
    *,
    shrinkage: float,
) -> Float[np.ndarray, "tokens d"]:
    """Return the mean of x at each token's longest kept suffix, where each fit token counts at its longest kept suffix only; float32.

    The mean of a kept node is shrunk towards that of its longest kept ancestor. The root is always kept, and shrunk towards the mean of x.
    (m + 1) d numbers have to be stored.
    """
    is_kept = np.zeros(tree.n_nodes, bool)
    is_kept[0], is_kept[kept] = True, True
    here, there = _longest_kept(tree.at, is_kept), _longest_kept(found, is_kept)
    number = np.cumsum(is_kept) - 1  # among the kept ones, in the same order
    n, d = int(is_kept.sum()), x.shape[1]
    counts = np.bincount(number[here], minlength=n)[:, None]
    member = scipy.sparse.csr_matrix((np.ones(len(here)), (number[here], np.arange(len(here)))), shape=(n, len(here)))
    ancestors, depths = number[_find_kept_ancestors(tree, is_kept)[is_kept]], tree.depths()[is_kept]
    predicted = np.empty((len(found), d), np.float32)
    for columns in _column_blocks(x, n):
        block = np.asarray(x[:, columns], np.float64)
        means = member @ block
        means[0] = (means[0] + shrinkage * block.mean(0)) / (counts[0] + shrinkage)
        for depth in range(1, len(tree.keys) + 1):
            rows = np.flatnonzero(depths == depth)
            means[rows] = (means[rows] + shrinkage * means[ancestors[rows]]) / (counts[rows] + shrinkage)
        predicted[:, columns] = means[number[there]]
    return predicted


def _shrink_means(
    tree: SuffixTree, x: Float[np.ndarray, "fit_tokens c"], *, shrinkage: float, depth: int
) -> Float[np.ndarray, "nodes c"]:
    """Return the shrunk means of some columns of x at all nodes up to a depth; 0 at deeper ones."""
    means = np.zeros((tree.n_nodes, x.shape[1]))
    means[0] = x.mean(0)
    for nodes, first, last in zip(tree.at.T[:depth], tree.first, tree.first[1:], strict=False):
        tokens = np.flatnonzero(nodes >= 0)
        shape = (last - first, len(x))
        member = scipy.sparse.csr_matrix((np.ones(len(tokens)), (nodes[tokens] - first, tokens)), shape=shape)
        towards = means[tree.parent[first:last]]
        means[first:last] = (member @ x + shrinkage * towards) / (tree.counts[first:last, None] + shrinkage)
    return means


def _find_kept_ancestors(tree: SuffixTree, is_kept: Bool[np.ndarray, "nodes"]) -> Int[np.ndarray, "nodes"]:
    """Return the deepest kept node above each node; the root for the root."""
    ancestors = np.maximum(tree.parent, 0)
    for first, last in zip(tree.first, tree.first[1:], strict=False):  # the ancestors of shallower nodes are final
        parents = tree.parent[first:last]
        ancestors[first:last] = np.where(is_kept[parents], parents, ancestors[parents])
    return ancestors


def _longest_kept(
    found: Int[np.ndarray, "tokens depths"], is_kept: Bool[np.ndarray, "nodes"]
) -> Int[np.ndarray, "tokens"]:
    """Return the deepest kept node of each token, the root if there is none."""
    return np.where((found >= 0) & is_kept[found], found, 0).max(1)


def _column_blocks(x: Float[np.ndarray, "tokens d"], n_nodes: int) -> list[slice]:
    width = max(1, BLOCK // max(n_nodes, len(x)))
    return [slice(first, first + width) for first in range(0, x.shape[1], width)]
