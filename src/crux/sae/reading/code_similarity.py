"""Correlations of the codes of two SAEs on the same text, by name, with their chance levels."""

import numpy as np
from jaxtyping import Int

from crux.sae.geometry.code_correlation import compare_codes
from crux.sae.reading.harvest import ReadText


def describe_code_similarity(
    a: ReadText, b: ReadText, *, matched: tuple[Int[np.ndarray, "pairs"], Int[np.ndarray, "pairs"]]
) -> dict[str, float]:
    """Return the mean largest correlation of codes in both directions and that of matched latents; `/shifted` is the chance level.

    Args:
        a, b: the same text with the codes of two SAEs.
        matched: latents of A and their partners of B.
    """
    similarity = compare_codes(a.codes, b.codes, rows=matched[0], columns=matched[1], context=a.windows.shape[1])
    return {
        "to_code_correlation": similarity.to, "to_code_correlation/shifted": similarity.chance_to,
        "from_code_correlation": similarity.back, "from_code_correlation/shifted": similarity.chance_back,
        "matched_code_correlation": similarity.matched, "matched_code_correlation/shifted": similarity.chance_matched,
    }  # fmt: skip
