"""What is computed once for a text, however many SAEs or controls are explained on it: suffixes and other candidates for rules."""

from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Int

from crux.sae.reading.context_features import ContextFeatures, context_features
from crux.sae.reading.suffix_tree import Children, SuffixTree, children_by_count, grow_suffix_tree
from crux.sae.reading.token_classes import TokenClasses

MIN_CONTEXT_COUNT = 10
"""Least number of fit tokens at which a condition other than a suffix must hold to become a rule."""


class FitText(NamedTuple):
    """The candidates for rules on a text; the same for all codes on it."""

    tree: SuffixTree
    children: Children
    indicator: scipy.sparse.csr_matrix
    """Ones, nodes × tokens, where a suffix ends."""
    features: ContextFeatures
    classes: TokenClasses

    @property
    def n_tokens(self) -> int:
        """Number of tokens of the text."""
        return len(self.tree.at)


def prepare_fit(
    windows: Int[np.ndarray, "windows context"], begins: Bool[np.ndarray, "tokens"], classes: TokenClasses
) -> FitText:
    """Return the candidates for rules on a text."""
    tree = grow_suffix_tree(windows, begins, vocab=len(classes.members))
    features = context_features(windows, begins, classes, min_count=MIN_CONTEXT_COUNT)
    return FitText(tree, children_by_count(tree), tree.indicator(), features, classes)
