"""The rules of all latents: the few conditions on the text that say when each latent fires, and how strongly."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int

from crux.sae.reading.conditions import Conditions, Kind
from crux.sae.reading.sparse_matrices import make_csr, sorted_csr
from crux.sae.reading.token_classes import TokenClasses


class Rules(NamedTuple):
    """The rules of all latents, latent by latent in the order of their choice, and the conditions that they test.

    The predicted code of a token is max(0, base + Σ increments of the rules whose condition holds). For suffixes this is the value of the
    longest one that holds, since the increment of a suffix is its value minus that of the next shorter one among the latent's rules.
    """

    conditions: Conditions
    classes: TokenClasses
    indptr: Int[np.ndarray, "n_latents+1"]
    """The rules of latent i are at indptr[i] to indptr[i + 1]."""
    condition: Int[np.ndarray, "rules"]
    """Number of the condition that a rule tests."""
    value: Float[np.ndarray, "rules"]
    """A suffix: the code where it is the longest that holds, without the corrections. Another kind: the correction added to the code."""
    increment: Float[np.ndarray, "rules"]
    """What is added to the predicted code where the condition holds."""
    gain: Float[np.ndarray, "rules"]
    """Reduction of the sum of squared errors on the fit tokens for which the rule was chosen, after shrinkage."""
    counts: Int[np.ndarray, "rules"]
    """Number of fit tokens where the condition holds."""
    total: Float[np.ndarray, "rules"]
    """Sum of the codes over these tokens."""
    base: Float[np.ndarray, "n_latents"]
    """The code where no rule applies; may be negative, which predicts 0."""
    mass: Float[np.ndarray, "n_latents"]
    """Sum of the codes over all fit tokens."""

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        return len(self.base)

    @property
    def floor(self) -> Float[np.ndarray, "n_latents"]:
        """The predicted code where no rule applies: max(0, base)."""
        return np.maximum(self.base, 0)

    def increments(self) -> scipy.sparse.csr_matrix:
        """Return the increments as a matrix, conditions × latents."""
        latents = np.repeat(np.arange(self.n_latents), np.diff(self.indptr))
        shape = (len(self.conditions.kinds), self.n_latents)
        return make_csr(self.increment, self.condition, latents, shape)


def predict_codes(
    rules: Rules, windows: Int[np.ndarray, "windows context"], begins: Bool[np.ndarray, "tokens"]
) -> scipy.sparse.csr_matrix:
    """Return the predicted codes minus `rules.floor`, tokens × latents: zero wherever no rule of a latent applies.

    The predicted codes are this matrix plus the row `rules.floor`, and at least 0. Memory is proportional to the number of pairs of a
    token and a latent with a rule that holds: pass blocks of whole windows (`predict_blocks`).
    """
    held = rules.conditions.matches(windows, begins, rules.classes)
    codes = sorted_csr(held @ rules.increments())
    latents = codes.indices
    codes.data = np.maximum(codes.data + rules.base[latents], 0) - rules.floor[latents]
    codes.eliminate_zeros()
    return codes


def predict_blocks(
    rules: Rules, windows: Int[np.ndarray, "windows context"], begins: Bool[np.ndarray, "tokens"], *, n_windows: int
) -> Iterator[tuple[slice, scipy.sparse.csr_matrix]]:
    """Yield the tokens of each block of windows with `predict_codes` of the block."""
    context = windows.shape[1]
    for first in range(0, len(windows), n_windows):
        block = windows[first : first + n_windows]
        tokens = slice(first * context, first * context + block.size)
        yield tokens, predict_codes(rules, block, begins[tokens])


def predict_dense(
    rules: Rules, windows: Int[np.ndarray, "windows context"], begins: Bool[np.ndarray, "tokens"]
) -> Float[np.ndarray, "tokens n_latents"]:
    """Return the predicted codes of a block of windows, at least 0, in float32: what replaces the codes when the rules are spliced in."""
    return (predict_codes(rules, windows, begins).toarray() + rules.floor).astype(np.float32)


def predict_latents(
    rules: Rules, held: scipy.sparse.csr_matrix, latents: Int[np.ndarray, "chosen"]
) -> scipy.sparse.csc_matrix:
    """Return the predicted codes of some latents minus their floor, tokens × chosen latents.

    Args:
        held: where each condition of the rules holds, tokens × conditions (`match_text`).
    """
    codes = scipy.sparse.csc_matrix(held @ rules.increments().tocsc()[:, latents])
    codes.sort_indices()
    owners = latents[np.repeat(np.arange(len(latents)), np.diff(codes.indptr))]
    codes.data = np.maximum(codes.data + rules.base[owners], 0) - rules.floor[owners]
    return codes


def compact_rules(rules: Rules) -> Rules:
    """Return the rules with no other conditions than those that they test, numbered anew."""
    number, conditions = conditions_in_use(rules.conditions, rules.condition)
    return rules._replace(conditions=conditions, condition=number[rules.condition].astype(np.int32))


def first_latents(rules: Rules, n: int) -> Rules:
    """Return the rules of the first n latents."""
    end = int(rules.indptr[n])
    per_rule = {
        name: getattr(rules, name)[:end] for name in ("condition", "value", "increment", "gain", "counts", "total")
    }
    return compact_rules(
        rules._replace(indptr=rules.indptr[: n + 1], base=rules.base[:n], mass=rules.mass[:n], **per_rule)
    )


def conditions_in_use(
    conditions: Conditions, used: Int[np.ndarray, "used"]
) -> tuple[Int[np.ndarray, "conditions"], Conditions]:
    """Return the new number of each condition, and the conditions that are used themselves or as a part of one that is."""
    kept = np.zeros(len(conditions.kinds), bool)
    kept[used] = True
    both = conditions.kinds == Kind.BOTH
    kept[conditions.parts[both & kept][:, :2]] = True
    number = np.cumsum(kept) - 1
    kinds, parts = conditions.kinds[kept], conditions.parts[kept].copy()
    parts[kinds == Kind.BOTH, :2] = number[parts[kinds == Kind.BOTH, :2]]
    return number, Conditions(kinds, parts)
