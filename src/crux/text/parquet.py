"""Stream the rows of a Parquet file as texts or token ids."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Integer

from crux.config.errors import UserError
from crux.text.paths import check_parquet
from crux.text.readers import COLUMNS

ROWS_PER_BATCH = 256  # one batch is in memory at a time


def parquet_documents(path: Path, *, column: str | None) -> Iterator[str | Integer[np.ndarray, "pos"]]:
    """Yield the rows of a column; skip null rows.

    Raises:
        UserError: if the file is not Parquet, or has no column of that name with texts or lists of integers.
    """
    check_parquet(path)
    try:
        with pq.ParquetFile(path) as file:
            name = _find_column(path, file.schema_arrow, column=column)
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, columns=[name]):
                values = batch.column(0)
                if _is_text(values.type):
                    yield from (text for text in values.to_pylist() if text is not None)
                else:
                    yield from (row.values.to_numpy(zero_copy_only=False) for row in values if row.is_valid)
    except (OSError, pa.ArrowException) as e:  # a damaged page, or a codec that this build of pyarrow lacks
        raise UserError(f"{path} cannot be read as Parquet: {str(e).splitlines()[0]}") from None


def _is_text(t: pa.DataType) -> bool:
    return pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t)


def _is_id_list(t: pa.DataType) -> bool:
    lists = pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t)
    return lists and pa.types.is_integer(t.value_type)


def _find_column(path: Path, schema: pa.Schema, *, column: str | None) -> str:
    """Return `column`, or the first of `COLUMNS` in the file, if it has texts or token ids; otherwise raise UserError."""
    for name in (column,) if column else COLUMNS:
        if name in schema.names and (_is_text(schema.field(name).type) or _is_id_list(schema.field(name).type)):
            return name
    columns = ", ".join(f"{f.name} ({f.type})" for f in schema)
    wanted = column or " or ".join(COLUMNS)
    raise UserError(f"{path}: no column {wanted} of texts or token ids; there are: {columns} (data.column chooses one)")
