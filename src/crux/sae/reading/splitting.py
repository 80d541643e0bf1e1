"""Splitting across widths: which latents of a wide SAE divide up the firings of one latent of a narrow SAE."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.geometry.nearest import find_nearest, normalise_rows
from crux.sae.reading.sparse_codes import SparseCodes

MIN_COVERAGE = 0.8
"""A wide latent is a child of its nearest narrow latent if that one fires on at least this share of its firings."""

TOKENS = 65_536
"""Number of tokens whose firings are compared at a time."""


class Splitting(NamedTuple):
    """The latents of a wide SAE and their parents in a narrow one."""

    parent: Int[np.ndarray, "n_wide"]
    """The narrow latent whose decoder direction has the largest signed cosine, among those that fire."""
    cosine: Float[np.ndarray, "n_wide"]
    """That cosine."""
    coverage: Float[np.ndarray, "n_wide"]
    """Share of the wide latent's firings on which the parent fires too; NaN if it never fires."""
    chance: Float[np.ndarray, "n_wide"]
    """The parent's density: the coverage that an unrelated latent would have."""
    children: Int[np.ndarray, "n_narrow"]
    """Number of wide latents with a coverage of at least `MIN_COVERAGE`, for each narrow latent; one that has not split has 1."""


def measure_splitting(
    narrow: SparseCodes,
    wide: SparseCodes,
    *,
    narrow_dictionary: Float[Tensor, "n_narrow d"],
    wide_dictionary: Float[Tensor, "n_wide d"],
    min_coverage: float = MIN_COVERAGE,
) -> Splitting:
    """Find the parent of each wide latent, and count the children of each narrow one.

    Args:
        narrow, wide: the codes of both SAEs on the same tokens.

    Raises:
        UserError: if they have different numbers of tokens, or no narrow latent fires.
    """
    if narrow.n_tokens != wide.n_tokens:
        raise UserError(
            f"splitting: the SAEs were read on {narrow.n_tokens:,} and {wide.n_tokens:,} tokens, not on the same"
        )
    alive = np.flatnonzero(narrow.firings())
    if not len(alive):
        raise UserError("splitting: no latent of the narrow SAE fires")
    nearest = find_nearest(normalise_rows(wide_dictionary), normalise_rows(narrow_dictionary[alive]))
    parent = alive[nearest.indices]
    both = np.zeros(wide.n_latents, np.int64)
    for first in range(0, wide.n_tokens, TOKENS):
        last = min(first + TOKENS, wide.n_tokens)
        firing = narrow.tokens(first, last)
        keys = _pair_keys(firing, narrow.n_latents)  # ascending
        of_wide = wide.tokens(first, last)
        token = np.repeat(np.arange(last - first), np.diff(of_wide.indptr))
        wanted = token * narrow.n_latents + parent[of_wide.latents]
        found = np.zeros(len(wanted), bool)
        if len(keys):
            places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            found = keys[places] == wanted
        both += np.bincount(of_wide.latents[found], minlength=wide.n_latents)
    firings = wide.firings()
    coverage = np.divide(both, firings, out=np.full(wide.n_latents, np.nan), where=firings > 0)
    children = np.bincount(parent[coverage >= min_coverage], minlength=narrow.n_latents)
    return Splitting(parent, nearest.cosines, coverage, narrow.densities()[parent], children)


def describe_splitting(
    codes: SparseCodes,
    other_codes: SparseCodes,
    *,
    dictionary: Float[Tensor, "n_latents d"],
    other_dictionary: Float[Tensor, "n_other d"],
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return, for each latent of an SAE, its children and its parent's coverage in another SAE, and the shares of latents that split.

    Features: `children`, as in `Splitting`; `parent_coverage`, the share of the latent's firings on which its nearest latent of the other
    SAE fires too, and `parent_density`, the coverage of an unrelated latent. Metrics: shares of the latents that fire: `split_share`,
    those with two or more children; `child_share`, those that are a child.
    """
    down = measure_splitting(codes, other_codes, narrow_dictionary=dictionary, wide_dictionary=other_dictionary)
    up = measure_splitting(other_codes, codes, narrow_dictionary=other_dictionary, wide_dictionary=dictionary)
    columns = {"children": down.children, "parent_coverage": up.coverage, "parent_density": up.chance}
    alive = codes.firings() > 0
    metrics = {
        "split_share": float(np.mean(down.children[alive] >= 2)),
        "child_share": float(np.mean(up.coverage[alive] >= MIN_COVERAGE)),
    }
    return pd.DataFrame(columns, index=pd.RangeIndex(codes.n_latents, name="latent")), metrics


def _pair_keys(codes: SparseCodes, n_latents: int) -> Int[np.ndarray, "nnz"]:
    """Return token · n_latents + latent for each code, ascending."""
    token = np.repeat(np.arange(codes.n_tokens), np.diff(codes.indptr))
    return token * n_latents + codes.latents
