"""Codes of random directions with the sparsity of an SAE: what a dictionary that has learned nothing would give."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse
from jaxtyping import Float

BLOCK = 2**25
"""Number of products of tokens and directions that are in memory at a time."""


def random_topk_codes(
    x: Sequence[Float[np.ndarray, "_n d"]], *, mean: Float[np.ndarray, "d"], n_latents: int, k: int, seed: int
) -> list[scipy.sparse.csr_matrix]:
    """Return, for each of several sets of activations, ReLU((x − mean) · u) of the k random unit directions u with the largest products.

    The directions are isotropic and the same for all sets: an untrained TopK SAE of the same width and L0.
    """
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((n_latents, len(mean)), dtype=np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    k = min(k, n_latents)
    found = []
    for tokens in x:
        rows = max(1, BLOCK // n_latents)
        blocks = [scipy.sparse.csr_matrix((0, n_latents), dtype=np.float32)]
        for first in range(0, len(tokens), rows):
            products = (tokens[first : first + rows] - mean).astype(np.float32) @ directions.T
            chosen = np.sort(np.argpartition(products, n_latents - k, axis=1)[:, n_latents - k :], axis=1)
            values = np.maximum(np.take_along_axis(products, chosen, 1), 0)
            indptr = np.arange(len(products) + 1) * k
            block = scipy.sparse.csr_matrix((values.ravel(), chosen.ravel(), indptr), shape=products.shape)
            block.eliminate_zeros()
            blocks.append(block)
        found.append(scipy.sparse.vstack(blocks, format="csr"))
    return found
