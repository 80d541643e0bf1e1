"""At how many tokens two candidates for rules hold together: all that the choice and the values of rules need besides sums of codes."""

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from crux.sae.reading.conjunctions import Conjunctions
from crux.sae.reading.context_features import ContextFeatures
from crux.sae.reading.fit_text import FitText
from crux.sae.reading.sparse_lookup import look_up
from crux.sae.reading.sparse_matrices import size_of, sorted_csr

MAX_ENTRIES = 50_000_000
"""Entries of the table of features that are kept from one block of latents to the next."""


class FeatureOverlaps:
    """Overlaps of features with all features: a row for each feature that some rule has used so far."""

    def __init__(self, features: ContextFeatures) -> None:
        self._features = features
        self.row_of = np.full(features.n_features, -1, np.int64)
        """Row of each feature in `matrix`; −1 if it is not there."""
        self.matrix = scipy.sparse.csr_matrix((0, features.n_features))
        """Numbers of tokens, rows × features."""

    def add(self, wanted: Int[np.ndarray, "wanted"]) -> None:
        """Add the rows of these features."""
        new = np.unique(wanted)
        new = new[self.row_of[new] < 0]
        if len(new):
            rows = sorted_csr(self._features.rows(new) @ self._features.matrix)
            self.row_of[new] = size_of(self.matrix)[0] + np.arange(len(new))
            self.matrix = scipy.sparse.csr_matrix(scipy.sparse.vstack([self.matrix, rows], format="csr"))

    def clear_if_large(self) -> None:
        """Forget all rows if they take much memory."""
        if self.matrix.nnz > MAX_ENTRIES:
            self.__init__(self._features)


class Overlaps:
    """Overlaps within a block of latents. Context features come first, then the block's conjunctions: together, the extras."""

    def __init__(
        self,
        text: FitText,
        nodes: Int[np.ndarray, "latents candidates"],
        conjunctions: Conjunctions,
        features: FeatureOverlaps,
    ) -> None:
        matrix = text.features.matrix
        distinct, row_of = np.unique(np.maximum(nodes, 0), return_inverse=True)
        self.n_features = text.features.n_features
        self.nodes = nodes
        self.node_row = row_of.reshape(nodes.shape)
        """Row of each candidate in `node_features`."""
        self.node_features = sorted_csr(text.indicator[distinct] @ matrix)
        """Overlaps of suffixes and features, rows × features."""
        self.conjunction_features = sorted_csr(conjunctions.tokens @ matrix)
        self.features = features
        self._conjunction_nodes = sorted_csr(conjunctions.tokens @ text.indicator.T)
        self._conjunction_pairs = sorted_csr(conjunctions.tokens @ conjunctions.tokens.T)

    def with_nodes(
        self, latents: Int[np.ndarray, "chosen"], extras: Int[np.ndarray, "chosen"]
    ) -> Float[np.ndarray, "chosen candidates"]:
        """Return the overlap of an extra of each latent with all suffixes of this latent."""
        shape = (len(latents), self.nodes.shape[1])
        table = np.zeros(shape)
        single = extras < self.n_features
        rows = self.node_row[latents[single]]
        table[single] = look_up(self.node_features, rows, np.broadcast_to(extras[single][:, None], rows.shape))
        both = extras[~single] - self.n_features
        columns = np.maximum(self.nodes[latents[~single]], 0)
        table[~single] = look_up(self._conjunction_nodes, np.broadcast_to(both[:, None], columns.shape), columns)
        return np.where(self.nodes[latents] >= 0, table, 0.0)

    def of_extras(
        self, first: Int[np.ndarray, "pairs"], second: Int[np.ndarray, "pairs"]
    ) -> Float[np.ndarray, "pairs"]:
        """Return the overlaps of pairs of extras."""
        low, high = np.minimum(first, second), np.maximum(first, second)
        found = np.zeros(len(low))
        features = high < self.n_features
        self.features.add(low[features])
        found[features] = look_up(self.features.matrix, self.features.row_of[low[features]], high[features])
        mixed = (low < self.n_features) & ~features
        found[mixed] = look_up(self.conjunction_features, high[mixed] - self.n_features, low[mixed])
        both = low >= self.n_features
        found[both] = look_up(self._conjunction_pairs, low[both] - self.n_features, high[both] - self.n_features)
        return found
