"""Codes with a known explanation: each latent fires where one condition on the text holds, with random strength."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from crux.sae.reading.conditions import Conditions
from crux.sae.reading.sparse_codes import SparseCodes
from crux.sae.reading.token_classes import TokenClasses

SHAPE = 4.0
"""Shape of the Gamma distribution of strengths; its scale is the inverse, so that their mean is 1 and their variance 1 / 4."""


class PlantedCodes(NamedTuple):
    """Codes of one latent per condition, and the best score that an explanation can have."""

    codes: SparseCodes
    ceiling: Float[np.ndarray, "n_latents"]
    """Pearson correlation over all tokens of the code with whether the condition holds: nothing that depends on the text alone does better
    by more than chance; NaN if the condition holds at no token."""


def plant_codes(
    windows: Int[np.ndarray, "windows context"],
    begins: Bool[np.ndarray, "tokens"],
    conditions: Conditions,
    planted: Int[np.ndarray, "n_latents"],
    classes: TokenClasses,
    *,
    seed: int,
) -> PlantedCodes:
    """Return codes whose latent i fires where the condition with number `planted[i]` holds, with strengths drawn from Gamma(4, 1/4)."""
    held = conditions.matches(windows, begins, classes)[:, planted].tocsr()
    held.sort_indices()
    strengths = np.random.default_rng(seed).gamma(SHAPE, 1 / SHAPE, held.nnz).astype(np.float32)
    codes = SparseCodes(held.indptr.astype(np.int64), held.indices.astype(np.int32), strengths, len(planted))
    n = codes.n_tokens
    count = codes.firings().astype(float)
    total = np.bincount(codes.latents, strengths.astype(float), minlength=len(planted))
    squares = np.bincount(codes.latents, strengths.astype(float) ** 2, minlength=len(planted))
    with np.errstate(invalid="ignore", divide="ignore"):
        ceiling = (total - count * total / n) / np.sqrt((count - count**2 / n) * (squares - total**2 / n))
    return PlantedCodes(codes, ceiling)


def shift_codes(codes: SparseCodes, *, by: int) -> SparseCodes:
    """Return the codes moved on by a number of tokens, in a circle: as sparse and as bursty, but unrelated to the text."""
    tokens = np.roll(np.arange(codes.n_tokens), by)
    matrix = codes.matrix()[tokens]
    matrix.sort_indices()
    return SparseCodes(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data, codes.n_latents)
