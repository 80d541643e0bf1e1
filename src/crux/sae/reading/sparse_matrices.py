"""Sparse matrices of ones, and products with the types that they have."""

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

AnySparse = scipy.sparse.csr_matrix | scipy.sparse.csc_matrix


def size_of(matrix: AnySparse) -> tuple[int, int]:
    """Return the numbers of rows and columns."""
    shape = matrix.shape
    assert shape is not None
    return shape[0], shape[1]


def make_csr(
    values: Float[np.ndarray, "entries"],
    rows: Int[np.ndarray, "entries"],
    columns: Int[np.ndarray, "entries"],
    shape: tuple[int, int],
) -> scipy.sparse.csr_matrix:
    """Return a matrix with these entries, those at the same place added, by ascending columns."""
    matrix = scipy.sparse.csr_matrix(scipy.sparse.coo_matrix((values, (rows, columns)), shape=shape))
    matrix.sort_indices()
    return matrix


def make_indicator(
    rows: Int[np.ndarray, "entries"], columns: Int[np.ndarray, "entries"], shape: tuple[int, int]
) -> scipy.sparse.csr_matrix:
    """Return a matrix of ones at these places, however often a place is given."""
    matrix = make_csr(np.ones(len(rows)), rows, columns, shape)
    matrix.data[:] = 1
    return matrix


def sorted_csr(product: object) -> scipy.sparse.csr_matrix:
    """Return a product of sparse matrices as rows, by ascending columns."""
    matrix = scipy.sparse.csr_matrix(product)
    matrix.sort_indices()
    return matrix
