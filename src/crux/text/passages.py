"""Split a text file into documents, at its end-of-text marks or, if it has none, at paragraphs."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

from crux.text.readers import decode_file, read_blocks
from crux.text.tokenizer import END_OF_TEXT

MIN_LENGTH, MAX_LENGTH = 1024, 8192  # bounds of `passage_length`, in characters
PARAGRAPH_BREAK = re.compile(r"\n(?:[ \t]*\n)+")


def passage_length(size: int) -> int:
    """Return the minimum length of a passage in characters, such that even a small text of `size` bytes has about 100 passages."""
    return min(max(size // 100, MIN_LENGTH), MAX_LENGTH)


def text_documents(path: Path, *, length: int) -> Iterator[str]:
    """Yield the documents of a text file, without blank lines around them and with all line ends as newlines.

    A file with `<|endoftext|>` between its documents is split only there. Any other file is cut into passages at the
    first paragraph boundary after `length` characters. A paragraph longer than twice `length` is cut at a line end, else
    at a space, else at exactly twice `length`. Only white space at the cuts is lost.
    """
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    texts = (newlines.decode(t) for t in decode_file(path))
    parts = _split_at_marks(texts) if has_separators(path) else _cut_passages(texts, length=length)
    for part in parts:
        if part.strip():
            yield part.strip("\n")


def has_separators(path: Path) -> bool:
    """Return True if an end-of-text mark separates two documents, rather than only ending one."""
    mark, rest, mark_seen = END_OF_TEXT.encode(), b"", False
    for block in read_blocks(path):
        data = rest + block
        if not mark_seen:
            before, first_mark, data = data.partition(mark)
            mark_seen = bool(first_mark)
            if not mark_seen:
                rest = before[1 - len(mark) :]  # a mark may begin in this block and end in the next
                continue
        # `data` now follows the first mark: anything but marks and white space is a second document
        if data.replace(mark, b"").strip():
            return True
        rest = b""
    return False


def _split_at_marks(texts: Iterator[str]) -> Iterator[str]:
    """Split the text, which comes in blocks, at every end-of-text mark; a document is joined once, however long it is."""
    parts: list[str] = []
    rest = ""  # may begin with a part of a mark
    for text in texts:
        first, *others = (rest + text).split(END_OF_TEXT)
        for other in others:
            yield "".join([*parts, first])
            parts, first = [], other
        keep = max(0, len(first) - len(END_OF_TEXT) + 1)
        parts.append(first[:keep])
        rest = first[keep:]
    yield "".join([*parts, rest])


def _cut_passages(texts: Iterator[str], *, length: int) -> Iterator[str]:
    """Cut the text, which comes in blocks, into passages of `length` to twice `length` characters; the last may be shorter."""
    rest = ""
    for text in texts:
        rest, start = rest + text, 0
        # the cut must lie so far before the end of the text that it cannot divide a mark there
        while len(rest) - start > 2 * length + len(END_OF_TEXT):
            end = _find_boundary(rest, start=start, length=length)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    rest = rest.replace(END_OF_TEXT, "")  # the mark may end the only document
    while len(rest) > 2 * length:
        end = _find_boundary(rest, start=0, length=length)
        yield rest[:end]
        rest = rest[end:]
    yield rest


def _find_boundary(text: str, *, start: int, length: int) -> int:
    """Return the end of the passage that begins at `start`, between `length` and twice `length` characters after it."""
    limit = start + 2 * length
    if paragraph := PARAGRAPH_BREAK.search(text, start + length, limit):
        return paragraph.end()
    for space in ("\n", " "):
        if (last := text.rfind(space, start + length, limit)) >= 0:
            return last if space == " " else last + 1
    return limit
