"""Stream the rows of a Parquet or Arrow file as texts or token ids.

`datasets` reads these files too, but a whole row group at a time (four times the memory at the same speed), without the row in its
messages, and with a lock file in ~/.cache for each file. So crux uses pyarrow, as `datasets` does.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crux.config.errors import UserError
from crux.text.cells import COLUMNS, MASK, Row, check_mask, choose_column, mask_name
from crux.text.paths import check_parquet

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
ROWS_PER_BATCH, BYTES_PER_BATCH = 256, 8 << 20  # one batch is in memory at a time; it is smaller if the rows are long


def arrow_rows(path: Path, *, column: str | None, kind: Literal["parquet", "arrow"]) -> Iterator[Row]:
    """Yield the rows of a column.

    Raises:
        UserError: if the file is not of this kind, has no column of that name with texts or lists of integers, or has a
            row that is neither.
    """
    number = 0
    try:
        for batch in _parquet_batches(path, column) if kind == "parquet" else _arrow_batches(path, column):
            values, masks = batch.column(0), batch.column(1) if batch.num_columns > 1 else None
            step = max(1, min(len(values), ROWS_PER_BATCH, len(values) * BYTES_PER_BATCH // (1 + values.nbytes)))
            for start in range(0, len(values), step):
                part = values.slice(start, step)
                if _is_text(values.type):
                    yield from _texts(part, path, number)
                else:
                    names = batch.schema.names
                    mask = None if masks is None else (names[1], masks.slice(start, step))
                    yield from _id_lists(part, mask, path, number)
                number += len(part)
    except (OSError, pa.ArrowException) as e:  # a damaged page, or a codec that this build of pyarrow lacks
        name = {"parquet": "Parquet", "arrow": "Arrow"}[kind]
        raise UserError(f"{path} cannot be read as {name}: {str(e).splitlines()[0]}") from None


def _parquet_batches(path: Path, column: str | None) -> Iterator[pa.RecordBatch]:
    check_parquet(path)
    with pq.ParquetFile(path, buffer_size=1 << 20) as file:
        columns = _find_columns(path, file.schema_arrow, column=column)
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        bytes_per_row = max((g.total_byte_size // max(1, g.num_rows) for g in groups), default=0)
        rows = min(ROWS_PER_BATCH, max(1, BYTES_PER_BATCH // max(1, bytes_per_row)))
        for batch in file.iter_batches(batch_size=rows, columns=columns):
            yield batch.select(columns)


def _arrow_batches(path: Path, column: str | None) -> Iterator[pa.RecordBatch]:
    """Yield the batches of an Arrow file in either format; `datasets` writes the one for streams."""
    with pa.OSFile(str(path)) as source:
        try:
            reader = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            source.seek(0)
            reader = pa.ipc.open_file(source)
        columns = _find_columns(path, reader.schema, column=column)
        if isinstance(reader, pa.RecordBatchFileReader):
            for i in range(reader.num_record_batches):
                yield reader.get_batch(i).select(columns)
        else:
            for batch in reader:
                yield batch.select(columns)
            source.seek(source.size() - len(END_OF_STREAM))
            if (
                source.read(len(END_OF_STREAM)) != END_OF_STREAM
            ):  # pyarrow does not mind if a stream ends between two batches
                raise UserError(f"{path} is not a complete Arrow file: it has no end-of-stream mark")


def _texts(values: pa.Array, path: Path, number: int) -> Iterator[Row]:
    """Yield the texts of a column, of which `number` rows have been read before."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    for i, value in enumerate(values, start=number + 1):
        try:
            text = value.as_py()
            text = text.decode() if isinstance(text, bytes) else text
        except UnicodeDecodeError as e:
            raise UserError(
                f"{path}, row {i}: not UTF-8 (byte 0x{e.object[e.start]:02x} at offset {e.start:,})"
            ) from None
        yield Row(i, text, False)


def _id_lists(values: pa.Array, named_masks: tuple[str, pa.Array] | None, path: Path, number: int) -> Iterator[Row]:
    """Yield the token ids of a column whose mask is 1; `number` rows have been read before."""
    name, masks = named_masks or ("", None)
    for i, row in enumerate(values):
        where = f"{path}, row {number + i + 1}"
        if not row.is_valid:
            yield Row(number + i + 1, None, False)
            continue
        if row.values.null_count:
            raise UserError(f"{where}: a null among its token ids")
        ids = row.values.to_numpy(zero_copy_only=False)
        if masks is not None:
            if not masks[i].is_valid:
                check_mask(len(ids), None, where=where, name=name)
            mask = masks[i].values
            if (
                mask.null_count
                or (len(mask) != len(ids))
                or not np.isin(mask.to_numpy(zero_copy_only=False), (0, 1)).all()
            ):
                check_mask(len(ids), mask.to_pylist(), where=where, name=name)
            ids = ids[mask.to_numpy(zero_copy_only=False).astype(bool)]
        yield Row(number + i + 1, ids, False)  # pyright: ignore[reportArgumentType]


def _is_text(t: pa.DataType) -> bool:
    if pa.types.is_dictionary(t):
        return _is_text(t.value_type)
    strings = pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t)
    binaries = pa.types.is_binary(t) or pa.types.is_large_binary(t) or pa.types.is_binary_view(t)
    return strings or binaries or pa.types.is_null(t)


def _is_list(t: pa.DataType) -> bool:
    return (
        pa.types.is_list(t)
        or pa.types.is_large_list(t)
        or pa.types.is_fixed_size_list(t)
        or pa.types.is_list_view(t)
        or pa.types.is_large_list_view(t)
    )


def _find_columns(path: Path, schema: pa.Schema, *, column: str | None) -> list[str]:
    """Return the column to read, with that of the mask if it has token ids.

    Raises:
        UserError: if there is no such column of texts or token ids.
    """
    candidates = (column,) if column else COLUMNS
    readable = {
        f.name: f.type
        for f in schema
        if _is_text(f.type) or (_is_list(f.type) and pa.types.is_integer(f.type.value_type))
    }
    # a column without a single value says nothing, if there is another one
    name = choose_column({n: t for n, t in readable.items() if not pa.types.is_null(t)} or readable, column)
    if name not in readable:
        columns = ", ".join(f"{f.name} ({f.type})" for f in schema)
        wanted = " or ".join(candidates)
        raise UserError(
            f"{path}: no column {wanted} of texts or token ids; there are: {columns} (data.column chooses one)"
        )
    mask = next((m for m in (mask_name(name), MASK) if m in schema.names), None)
    columns = [name] if _is_text(readable[name]) or mask is None else [name, mask]
    for c in columns:
        if schema.names.count(c) > 1:
            raise UserError(f"{path} has {schema.names.count(c)} columns with the name {c}")
    if len(columns) == 2 and not _is_list(schema.field(columns[1]).type):
        kind = schema.field(columns[1]).type
        raise UserError(f"{path}: the column {columns[1]} is not a list of zeros and ones, but {kind}")
    return columns
