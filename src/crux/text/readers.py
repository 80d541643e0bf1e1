"""The bytes, text and JSON lines of one file, streamed. Standard library only, so that a mistake is reported at once."""

import codecs
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from crux.config.errors import UserError

COLUMNS = ("text", "input_ids")  # looked for in this order where no column is named
BLOCK = 1 << 20  # bytes read at a time


def blocks(path: Path) -> Iterator[bytes]:
    """The file's bytes, unpacked, a megabyte at a time.

    Raises:
        UserError: where the file cannot be read or unpacked.
    """
    packed = path.suffix.lower()
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(packed, open)
    try:
        file = cast(IO[bytes], opener(path, "rb"))
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}") from None
    with file:
        while True:
            try:
                block = file.read(BLOCK)
            except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as e:
                raise UserError(f"{path} is not a whole {packed} file: {e}") from None
            except OSError as e:
                raise UserError(f"{path} cannot be read: {e.strerror}") from None
            if not block:
                return
            yield block


def not_utf8(path: Path, offset: int, byte: int) -> UserError:
    """The error of a byte that no UTF-8 text has there."""
    hint = "; convert it first, for example with iconv -t utf-8" if byte else " (a zero byte: UTF-16 or no text at all)"
    return UserError(f"{path} is not UTF-8: byte 0x{byte:02x} at offset {offset:,}{hint}")


def decoded(path: Path) -> Iterator[str]:
    """The file's text, block by block, without a byte order mark.

    Raises:
        UserError: at the first byte that is not UTF-8, or zero, with its offset.
    """
    rest, at = b"", 0
    stream = blocks(path)
    while True:
        block = next(stream, b"")
        data = rest + block
        try:
            text, used = codecs.utf_8_decode(data, "strict", not block)
        except UnicodeDecodeError as e:
            raise not_utf8(path, at + e.start, data[e.start]) from None
        if "\0" in text:
            raise not_utf8(path, at + data.index(0), 0)
        if text:
            yield text.removeprefix("\ufeff") if at == 0 else text
        if not block:
            return
        rest, at = data[used:], at + used


def json_lines(path: Path, *, column: str | None) -> Iterator[str | list[int]]:
    """The column's value on each line: a text or a list of token ids; blank lines are passed over.

    Raises:
        UserError: with file and line, where a line is no JSON object, or has neither text nor ids in the column.
    """
    rest, at, number = b"", 0, 0
    stream = blocks(path)
    while True:
        block = next(stream, b"")
        *lines, rest = (rest + block).split(b"\n") if block else (rest, b"")
        for line in lines:
            number += 1
            start, at = at, at + len(line) + 1
            try:
                text = line.decode()
            except UnicodeDecodeError as e:
                raise not_utf8(path, start + e.start, line[e.start]) from None
            if number == 1:
                text = text.removeprefix("\ufeff")
            if text.strip():
                yield _value(text, column=column, where=f"{path}:{number}")
        if not block:
            return


def _value(line: str, *, column: str | None, where: str) -> str | list[int]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as e:
        raise UserError(f"{where}: not JSON ({e}); one JSON object a line is expected") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: a JSON {type(row).__name__}; one JSON object a line is expected")
    name = column or next((c for c in COLUMNS if c in row), COLUMNS[0])
    if name not in row:
        raise UserError(f"{where}: no key {name!r}; there are: {', '.join(row) or 'none'} (data.column chooses one)")
    value = row[name]
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{where}: {name!r} holds half of a surrogate pair, which is not text") from None
        return value
    if isinstance(value, list) and all(type(v) is int for v in value):
        return value
    raise UserError(f"{where}: {name!r} is neither a text nor a list of token ids")
