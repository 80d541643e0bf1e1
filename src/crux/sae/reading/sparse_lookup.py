"""Single entries of a sparse matrix, many at once."""

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int


def look_up(
    matrix: scipy.sparse.csr_matrix, rows: Int[np.ndarray, "*shape"], columns: Int[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """Return the entries of a matrix at these rows and columns, 0 where none is stored; columns must ascend within a row."""
    if not matrix.nnz:
        return np.zeros(rows.shape)
    low = matrix.indptr[rows].astype(np.int64)
    end = matrix.indptr[rows + 1].astype(np.int64)
    high = end.copy()
    while (low < high).any():
        middle = (low + high) // 2
        below = (matrix.indices[np.minimum(middle, matrix.nnz - 1)] < columns) & (low < high)
        low = np.where(below, middle + 1, low)
        high = np.where(below, high, np.minimum(middle, high))
    place = np.minimum(low, matrix.nnz - 1)
    return np.where((low < end) & (matrix.indices[place] == columns), matrix.data[place], 0.0)
