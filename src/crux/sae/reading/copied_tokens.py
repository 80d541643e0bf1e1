"""Latents that repeat what they read: tokens that both activate a latent and are promoted by it."""

from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Int


class CopyTest(NamedTuple):
    """The tokens that activate a latent and are also promoted by it."""

    shared: Int[np.ndarray, "shared"]
    """Token ids, ascending."""
    p_value: float
    """Probability that random tokens share as many."""

    def is_copy_like(self, *, below: float = 1e-3) -> bool:
        """Return whether more tokens are shared than by chance: such a latent repeats what it reads, like an induction head."""
        return self.p_value < below


def find_copied_tokens(
    promoted: Int[np.ndarray, "promoted"], rule_tokens: Int[np.ndarray, "rules"], *, d_vocab: int
) -> CopyTest:
    """Return the promoted tokens that are among the tokens of the latent's rules, with the hypergeometric probability of as many.

    Tokens may be repeated in either list; each counts once.
    """
    promoted, rule_tokens = np.unique(promoted), np.unique(rule_tokens)
    shared = np.intersect1d(promoted, rule_tokens)
    p_value = scipy.stats.hypergeom.sf(len(shared) - 1, d_vocab, len(rule_tokens), len(promoted))
    return CopyTest(shared, float(p_value))
