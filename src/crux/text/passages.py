"""A text file as documents: split at the end-of-text marks, or where there are none cut at paragraphs."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

from crux.text.readers import blocks, decoded
from crux.text.tokenizer import END_OF_TEXT

LONGEST_PASSAGE, SHORTEST_PASSAGE = 8192, 1024  # characters
PARAGRAPH = re.compile(r"\n(?:[ \t]*\n)+")


def passage_length(size: int) -> int:
    """Characters a passage should have at least, so that even a small text (of `size` bytes) gives about a hundred."""
    return min(max(size // 100, SHORTEST_PASSAGE), LONGEST_PASSAGE)


def text_documents(path: Path, *, length: int) -> Iterator[str]:
    """The documents of a text file, without the blank lines around them; line ends are read as newlines.

    A file with `<|endoftext|>` between its documents is split there and nowhere else. Any other is cut into passages at
    the first paragraph boundary after `length` characters; a paragraph of more than twice `length` is cut at a line's
    end, at a space, or where it must be. Nothing but blank space at the cuts is lost.
    """
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    texts = (newlines.decode(t) for t in decoded(path))
    pieces = _split(texts) if _separated(path) else _cut(texts, length=length)
    for piece in pieces:
        if document := piece.strip("\n") if piece.strip() else "":
            yield document


def _separated(path: Path) -> bool:
    """True where an end-of-text mark stands between two documents, not only at the end of one."""
    mark, rest, found = END_OF_TEXT.encode(), b"", False
    for block in blocks(path):
        data = rest + block
        if not found:
            before, mark_there, data = data.partition(mark)
            found = bool(mark_there)
            if not found:
                rest = before[1 - len(mark) :]
                continue
        if data.replace(mark, b"").strip():
            return True
        rest = b""
    return False


def _split(texts: Iterator[str]) -> Iterator[str]:
    rest = ""
    for text in texts:
        *whole, rest = (rest + text).split(END_OF_TEXT)
        yield from whole
    yield rest


def _cut(texts: Iterator[str], *, length: int) -> Iterator[str]:
    rest = ""
    for text in texts:
        rest, start = rest + text, 0
        while len(rest) - start > 2 * length + len(END_OF_TEXT):
            end = _boundary(rest, start=start, length=length)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    rest = rest.replace(END_OF_TEXT, "")  # the mark at the end of the only document
    while len(rest) > 2 * length:
        end = _boundary(rest, start=0, length=length)
        yield rest[:end]
        rest = rest[end:]
    yield rest


def _boundary(text: str, *, start: int, length: int) -> int:
    """Where the passage that begins at `start` ends, between `length` and twice `length` characters on."""
    limit = start + 2 * length
    if paragraph := PARAGRAPH.search(text, start + length, limit):
        return paragraph.end()
    for space in ("\n", " "):
        if (last := text.rfind(space, start + length, limit)) >= 0:
            return last if space == " " else last + 1
    return limit
