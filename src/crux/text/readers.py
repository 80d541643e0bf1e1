"""Stream the bytes, the text or the JSON rows of one file.

This module imports only the standard library (and pyarrow for .zst), so that an error is reported at once.
"""

import bz2
import codecs
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from crux.config.errors import UserError
from crux.text.cells import Row, has_mask, read_row

BLOCK_BYTES = 1 << 20  # bytes read at a time
COMPRESSIONS = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ\x00", ".bz2": b"BZh", ".zst": b"\x28\xb5\x2f\xfd"}
"""Suffixes of compressed files and the bytes that these begin with."""


def find_compression(path: Path) -> str:
    """Return the suffix of a file's compression, or "": by its name, else by its first bytes.

    Raises:
        UserError: if the file cannot be read.
    """
    if path.suffix.lower() in COMPRESSIONS:
        return path.suffix.lower()
    head = read_head(path)
    return next((suffix for suffix, magic in COMPRESSIONS.items() if head.startswith(magic)), "")


def read_head(path: Path) -> bytes:
    """Return the first bytes of a file, which tell its format; raise UserError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(8)
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}") from None


def read_blocks(path: Path) -> Iterator[bytes]:
    """Yield the file's decompressed bytes in blocks of at most 1 MiB.

    Raises:
        UserError: if the file cannot be read or decompressed.
    """
    compression = find_compression(path)
    broken = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
    try:
        file = _open(path, compression)
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror or e}") from None
    with file:
        while True:
            try:
                block = file.read(BLOCK_BYTES)
            except broken as e:
                raise UserError(f"{path} is not a complete {compression} file: {e}") from None
            except OSError as e:  # those of bz2 and pyarrow have no number
                if compression == ".zst" and "too much memory" in str(e):
                    raise UserError(
                        f"{path} was compressed with a window of more than 128 MB (zstd --long); compress it again without"
                    ) from None
                if e.errno is None and compression:
                    raise UserError(f"{path} is not a complete {compression} file: {e}") from None
                raise UserError(f"{path} cannot be read: {e.strerror or e}") from None
            if not block:
                return
            yield block


def _open(path: Path, compression: str) -> io.BufferedIOBase:
    if compression == ".zst":  # not in the standard library of Python 3.11
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))  # pyright: ignore[reportArgumentType]
    opener = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}.get(compression, open)
    return cast(io.BufferedIOBase, opener(path, "rb"))


def make_utf8_error(path: Path, offset: int, byte: int) -> UserError:
    """Return the error for a byte that is not valid UTF-8 text at this offset."""
    if read_head(path).startswith((b"PAR1", b"ARROW1")):
        return UserError(f"{path} is Parquet or Arrow by its first bytes; rename it to .parquet or .arrow")
    hint = "; convert it first, for example with iconv -t utf-8" if byte else " (a zero byte: UTF-16, or not text)"
    return UserError(f"{path} is not UTF-8: byte 0x{byte:02x} at offset {offset:,}{hint}")


def decode_file(path: Path) -> Iterator[str]:
    """Yield the file's text block by block, without a byte order mark.

    Raises:
        UserError: at the first byte that is zero or not UTF-8, with its offset.
    """
    for text, offset, data in _decode_blocks(path):
        if "\0" in text:
            raise make_utf8_error(path, offset + data.index(0), 0)
        yield text


def _decode_blocks(path: Path) -> Iterator[tuple[str, int, bytes]]:
    """Yield the text, its offset in the file and its bytes, block by block."""
    rest, offset = b"", 0
    stream = read_blocks(path)
    while True:
        block = next(stream, b"")
        data = rest + block
        try:
            text, used = codecs.utf_8_decode(data, "strict", not block)
        except UnicodeDecodeError as e:
            raise make_utf8_error(path, offset + e.start, data[e.start]) from None
        if text:
            yield (text.removeprefix("\ufeff") if offset == 0 else text), offset, data
        if not block:
            return
        rest, offset = data[used:], offset + used


def json_rows(path: Path, *, column: str | None) -> Iterator[Row]:
    """Yield the text or the token ids of each line, or of each element if the file is one JSON list; skip blank lines.

    Raises:
        UserError: if a line or element is not a JSON object, or has neither a text nor token ids in the column, or if only some
            rows of token ids have a mask.
    """
    lines_only = {".jsonl", ".ndjson"} & {path.suffix.lower(), Path(path.stem).suffix.lower()}
    values = _list_elements(path) if not lines_only and _is_list(path) else _line_values(path)
    masked = None
    for number, where, value in values:
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise UserError(f"{where}: a JSON {kind}; one JSON object per line is expected")
        if (has := has_mask(value, column=column)) is not None:
            if has is not (has if masked is None else masked):
                raise UserError(f"{where}: {'a' if has else 'no'} mask of the token ids, unlike the rows before")
            masked = has
        yield read_row(value, column=column, number=number, where=where)


def _line_values(path: Path) -> Iterator[tuple[int, str, object]]:
    """Yield the number, the place and the value of each line that is not blank."""
    offset, number = 0, 0
    for line in _lines(path):  # enumerate would keep a line, which may be long, until the next one
        number += 1
        start, offset = offset, offset + len(line) + 1
        try:
            text = line.decode()
        except UnicodeDecodeError as e:
            raise make_utf8_error(path, start + e.start, line[e.start]) from None
        del line
        text = text.removeprefix("\ufeff") if number == 1 else text
        if not text or text.isspace():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as e:  # ValueError also for a number of more than 4,300 digits
            raise UserError(f"{where}: not JSON ({e}); one JSON object per line is expected") from None
        del text
        yield number, where, value


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file without their ends; a line is joined once, however many blocks it has."""
    parts: list[bytes] = []
    for block in read_blocks(path):
        first, *others = block.split(b"\n")
        parts.append(first)
        if others:
            line = b"".join(parts)
            parts.clear()
            yield line
            del line
            yield from others[:-1]
            parts.append(others[-1])
    yield b"".join(parts)


def _is_list(path: Path) -> bool:
    """Return True if a JSON file begins with a list."""
    for text in decode_file(path):
        if start := text.lstrip():
            return start.startswith("[")
    return False


def _list_elements(path: Path) -> Iterator[tuple[int, str, object]]:
    """Yield the number, the place and the value of each element of a JSON list, of which only a part is in memory."""
    decoder, blocks = json.JSONDecoder(), decode_file(path)
    text = next(blocks).lstrip()[1:]
    number, position = 1, 0
    while True:
        while position < len(text) and (text[position].isspace() or (text[position] == "," and number > 1)):
            position += 1
        where = f"{path}, element {number}"
        if text[position : position + 1] == "]":
            if text[position + 1 :].strip() or any(block.strip() for block in blocks):
                raise UserError(
                    f"{path}: something follows its JSON list of {number - 1:,} elements; one list is expected"
                )
            return
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as e:
            text, position, before = text[position:], 0, len(text) - position
            while len(text) <= 2 * before:  # twice as much, so that a long element is not tried too often
                if (block := next(blocks, None)) is None:
                    break
                text += block
            if len(text) == before:
                raise UserError(f"{where}: not JSON ({e})") from None
            continue
        position = end
        yield number, where, value
        number += 1
