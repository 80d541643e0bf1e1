"""The codes of many tokens as a sparse matrix: the only form in which codes are kept when latents are read."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from crux.sae.architectures.active_codes import ActiveCodes


class SparseCodes(NamedTuple):
    """The non-zero codes of a text, token by token (compressed sparse rows); the arrays may be memory-mapped files."""

    indptr: Int[np.ndarray, "tokens+1"]
    """The codes of token t are at indptr[t] to indptr[t + 1]; int64."""
    latents: Int[np.ndarray, "nnz"]
    """The latent of each code, ascending within a token; int32."""
    values: Float[np.ndarray, "nnz"]
    """The codes; float32, not zero."""
    n_latents: int

    @property
    def n_tokens(self) -> int:
        """Number of tokens, including those without codes."""
        return len(self.indptr) - 1

    def matrix(self) -> scipy.sparse.csr_matrix:
        """Return the codes as a matrix, tokens × latents, that shares the memory of the arrays."""
        shape = (self.n_tokens, self.n_latents)
        return scipy.sparse.csr_matrix((self.values, self.latents, self.indptr), shape=shape, copy=False)

    def by_latent(self, first: int, last: int) -> scipy.sparse.csc_matrix:
        """Return the columns `first` to `last` − 1, tokens × latents, in float64: a block of latents that fits into memory."""
        return self.matrix()[:, first:last].tocsc().astype(np.float64)

    def firings(self) -> Int[np.ndarray, "n_latents"]:
        """Return the number of tokens on which each latent fires."""
        return np.bincount(self.latents, minlength=self.n_latents)

    def densities(self) -> Float[np.ndarray, "n_latents"]:
        """Return the share of tokens on which each latent fires."""
        return self.firings() / max(self.n_tokens, 1)

    def tokens(self, first: int, last: int) -> "SparseCodes":
        """Return the codes of the tokens `first` to `last` − 1."""
        start, end = self.indptr[first], self.indptr[last]
        indptr = self.indptr[first : last + 1] - start
        return SparseCodes(indptr, self.latents[start:end], self.values[start:end], self.n_latents)


def stack_batches(batches: Sequence[ActiveCodes], *, n_latents: int) -> SparseCodes:
    """Return the codes of the tokens of several batches, one batch behind the other."""
    arrays = [(codes.places.counts, codes.places.latents, codes.values) for codes in batches]
    counts, latents, values = ([part.cpu().numpy() for part in parts] for parts in zip(*arrays, strict=True))
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(counts), dtype=np.int64)])
    return SparseCodes(
        indptr, np.concatenate(latents).astype(np.int32), np.concatenate(values).astype(np.float32), n_latents
    )


def join_codes(parts: Sequence[SparseCodes]) -> SparseCodes:
    """Return the codes of several dictionaries on the same tokens as those of one, whose latents follow one another."""
    if len(parts) == 1:
        return parts[0]
    joined = scipy.sparse.csr_matrix(scipy.sparse.hstack([part.matrix() for part in parts]))
    return SparseCodes(
        joined.indptr.astype(np.int64),
        joined.indices.astype(np.int32),
        joined.data,
        sum(part.n_latents for part in parts),
    )
