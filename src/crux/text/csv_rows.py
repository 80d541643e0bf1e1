"""Stream the texts of a CSV or TSV file.

This module imports only the standard library, so that an error is reported at once.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from crux.config.errors import UserError
from crux.text.cells import COLUMNS, Row, choose_column, read_row
from crux.text.readers import decode_file

MAX_CELL = 2**31 - 1
"""Largest number of characters in a cell; the standard library's own limit is 131,072."""


def csv_rows(path: Path, *, column: str | None, delimiter: str) -> Iterator[Row]:
    """Yield the text of each row in the column that the first line names; an empty cell is null, as for `datasets`.

    Raises:
        UserError: if there is no such column, the column has token ids, a row has more or fewer cells than the first line, or a quoted
            cell does not end.
    """
    csv.field_size_limit(MAX_CELL)
    rows = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    try:
        names = next(rows, [])
        name = choose_column(names, column)
        if name not in names or names.count(name) > 1:
            problem = "no" if name not in names else f"{names.count(name)} times the"
            raise UserError(
                f"{path}: {problem} column {name!r} in its first line, which names {', '.join(names) or 'none'} "
                "(data.column chooses one)"
            )
        if name == COLUMNS[1]:
            raise UserError(
                f"{path}: its column {name!r} cannot be read from a table of texts; give token ids as JSONL or Parquet"
            )
        for number, cells in enumerate(rows, start=1):
            if not cells:  # a blank line
                continue
            where = f"{path}, row {number}"
            if len(cells) != len(names):
                raise UserError(f"{where}: {len(cells)} cells, but the first line names {len(names)} columns")
            yield read_row({name: cells[names.index(name)] or None}, column=name, number=number, where=where)
    except csv.Error as e:
        raise UserError(f"{path}:{rows.line_num}: not a table of cells ({e})") from None


def find_delimiter(path: Path) -> str:
    """Return what separates the cells of a file: a tab if its name ends in .tsv, also compressed, else a comma."""
    return "\t" if ".tsv" in (suffix.lower() for suffix in path.suffixes[-2:]) else ","


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file with their ends."""
    rest = ""
    for text in decode_file(path):
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            yield line + "\n"
    if rest:
        yield rest
