"""Turn the value of a row's column into a text or token ids: masks, nulls, and halves of surrogate pairs.

This module imports only the standard library, so that an error is reported at once.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from crux.config.errors import UserError

COLUMNS = ("text", "input_ids")  # names of the column, tried in this order if `data.column` is not given
MASK = "attention_mask"  # the column that tells which token ids are text (1) and which are padding (0)

_SURROGATE = re.compile("[\ud800-\udfff]")


class Row(NamedTuple):
    """One row of a file, before empty ones are left out."""

    number: int
    """Line, or row, from 1."""
    content: str | Sequence[int] | None
    """A text, a list or array of token ids without padding, or None if the row is null."""
    repaired: bool
    """True if halves of surrogate pairs have been replaced."""


def choose_column(names: Sequence[str] | Mapping[str, object], column: str | None) -> str:
    """Return the column to read: `column`, or the first of `COLUMNS` that is there."""
    return column or next((c for c in COLUMNS if c in names), COLUMNS[0])


def mask_name(column: str) -> str:
    """Return the column of a column's mask: `chosen_attention_mask` for `chosen_input_ids`, `attention_mask` for `tokens`."""
    return column.replace("input_ids", MASK) if "input_ids" in column else MASK


def has_mask(row: Mapping[str, Any], *, column: str | None) -> bool | None:
    """Return whether a row of token ids has a mask; None for any other row."""
    name = choose_column(row, column)
    return _find_mask(row, name) is not None if isinstance(row.get(name), list) else None


def _find_mask(row: Mapping[str, Any], column: str) -> str | None:
    return next((name for name in (mask_name(column), MASK) if name in row), None)


def read_row(row: Mapping[str, Any], *, column: str | None, number: int, where: str) -> Row:
    """Return the text or the token ids of a row whose values are Python objects.

    Args:
        column: the column to read; None: `text`, else `input_ids`.
        where: file and row, for messages.

    Raises:
        UserError: if there is no such column, or if it is neither a text nor a list of token ids.
    """
    name = choose_column(row, column)
    if name not in row:
        raise UserError(f"{where}: no key {name!r}; there are: {', '.join(row) or 'none'} (data.column chooses one)")
    match row[name]:
        case None:
            return Row(number, None, False)
        case bytes(raw):
            try:
                return Row(number, raw.decode(), False)
            except UnicodeDecodeError as e:
                raise UserError(f"{where}: not UTF-8 (byte 0x{raw[e.start]:02x} at offset {e.start:,})") from None
        case str(text):
            whole, n_replaced = replace_surrogates(text)
            return Row(number, whole, n_replaced > 0)
        case value:
            ids = value.tolist() if hasattr(value, "tolist") else value
            if not isinstance(ids, list):
                raise UserError(f"{where}: {name!r} is neither a text nor a list of token ids")
            if None in ids:
                raise UserError(f"{where}: {name!r} has a null among its token ids")
            if not all(type(v) is int for v in ids):
                raise UserError(f"{where}: {name!r} is neither a text nor a list of token ids")
            if mask := _find_mask(row, name):
                ids = apply_mask(ids, row[mask], where=where, name=mask)
            return Row(number, ids, False)


def replace_surrogates(text: str) -> tuple[str, int]:
    """Replace every half of a surrogate pair, which is no character, by U+FFFD; return the text and their number."""
    return (text, 0) if text.isascii() else _SURROGATE.subn("\ufffd", text)


def apply_mask(ids: list[int], mask: Any, *, where: str, name: str) -> list[int]:
    """Return the token ids whose mask is 1.

    Raises:
        UserError: if the mask is not a list of as many zeros and ones, or null: it would not be known what is padding.
    """
    mask = mask.tolist() if hasattr(mask, "tolist") else mask
    check_mask(len(ids), mask, where=where, name=name)
    return [i for i, m in zip(ids, mask, strict=True) if m]


def check_mask(n_ids: int, mask: Any, *, where: str, name: str) -> None:
    """Raise UserError unless the mask is a list of `n_ids` zeros and ones."""
    if not isinstance(mask, list) or not all(m in (0, 1) for m in mask):
        kind = "null" if mask is None else "not a list of zeros and ones"
        raise UserError(f"{where}: {name!r} is {kind}")
    if len(mask) != n_ids:
        raise UserError(f"{where}: {name!r} has {len(mask):,} values, but there are {n_ids:,} token ids")
