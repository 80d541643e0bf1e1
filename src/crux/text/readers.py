"""Stream the bytes, the text or the JSON lines of one file.

This module imports only the standard library, so that an error is reported at once.
"""

import codecs
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from crux.config.errors import UserError

COLUMNS = ("text", "input_ids")  # names of the column, tried in this order if `data.column` is not given
BLOCK_BYTES = 1 << 20  # bytes read at a time


def read_blocks(path: Path) -> Iterator[bytes]:
    """Yield the file's decompressed bytes in blocks of at most 1 MiB.

    Raises:
        UserError: if the file cannot be read or decompressed.
    """
    compression = path.suffix.lower()
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(compression, open)
    try:
        file = cast(IO[bytes], opener(path, "rb"))
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}") from None
    with file:
        while True:
            try:
                block = file.read(BLOCK_BYTES)
            except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as e:
                raise UserError(f"{path} is not a complete {compression} file: {e}") from None
            except OSError as e:
                raise UserError(f"{path} cannot be read: {e.strerror}") from None
            if not block:
                return
            yield block


def make_utf8_error(path: Path, offset: int, byte: int) -> UserError:
    """Return the error for a byte that is not valid UTF-8 text at this offset."""
    hint = "; convert it first, for example with iconv -t utf-8" if byte else " (a zero byte: UTF-16, or not text)"
    return UserError(f"{path} is not UTF-8: byte 0x{byte:02x} at offset {offset:,}{hint}")


def decode_file(path: Path) -> Iterator[str]:
    """Yield the file's text block by block, without a byte order mark.

    Raises:
        UserError: at the first byte that is zero or not UTF-8, with its offset.
    """
    rest, offset = b"", 0
    stream = read_blocks(path)
    while True:
        block = next(stream, b"")
        data = rest + block
        try:
            text, used = codecs.utf_8_decode(data, "strict", not block)
        except UnicodeDecodeError as e:
            raise make_utf8_error(path, offset + e.start, data[e.start]) from None
        if "\0" in text:
            raise make_utf8_error(path, offset + data.index(0), 0)
        if text:
            yield text.removeprefix("\ufeff") if offset == 0 else text
        if not block:
            return
        rest, offset = data[used:], offset + used


def json_lines(path: Path, *, column: str | None) -> Iterator[str | list[int]]:
    """Yield the value that each line has in the column, a text or a list of token ids; skip blank lines.

    Raises:
        UserError: if a line is not a JSON object, or has neither a text nor token ids in the column.
    """
    rest, offset, number = b"", 0, 0
    stream = read_blocks(path)
    while True:
        block = next(stream, b"")
        *lines, rest = (rest + block).split(b"\n") if block else (rest, b"")
        for line in lines:
            number += 1
            start, offset = offset, offset + len(line) + 1
            try:
                text = line.decode()
            except UnicodeDecodeError as e:
                raise make_utf8_error(path, start + e.start, line[e.start]) from None
            if number == 1:
                text = text.removeprefix("\ufeff")
            if text.strip():
                yield _parse_line(text, column=column, where=f"{path}:{number}")
        if not block:
            return


def _parse_line(line: str, *, column: str | None, where: str) -> str | list[int]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as e:
        raise UserError(f"{where}: not JSON ({e}); one JSON object per line is expected") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: a JSON {type(row).__name__}; one JSON object per line is expected")
    name = column or next((c for c in COLUMNS if c in row), COLUMNS[0])
    if name not in row:
        raise UserError(f"{where}: no key {name!r}; there are: {', '.join(row) or 'none'} (data.column chooses one)")
    value = row[name]
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{where}: {name!r} contains half of a surrogate pair, which is not valid text") from None
        return value
    if isinstance(value, list) and all(type(v) is int for v in value):
        return value
    raise UserError(f"{where}: {name!r} is neither a text nor a list of token ids")
