"""Cut long documents into pieces, the units of a sample, so that a document of any length is sampled over its whole length.

A piece is encoded with some text around it, and only the tokens that begin in it are kept. Pieces that follow each other then
give the same tokens as the whole document, and never more than a piece is in the tokenizer, which needs about 100 bytes for
each character.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

PIECE_CHARACTERS = (1_024, 8_192)  # shortest and longest length at which documents are cut
PIECES_PER_SIDE = (
    200  # so many pieces a sample should have, so that its shares are right although a piece is not divided
)
CHARACTERS_PER_TOKEN = 4
CONTEXT_CHARACTERS = (
    256,
    4_096,
)  # text on each side of a piece: at least, and at most if there is no space to begin at


class Piece(NamedTuple):
    """A document, or a part of a long one."""

    content: str | Integer[np.ndarray, "pos"]
    """Its text with the context around it, or its token ids."""
    start: int
    """Where the piece begins in `content`."""
    end: int
    """Where it ends in `content`."""
    whole: bool
    """True if the piece is the whole document."""
    last: bool
    """True if the piece is the last of its document."""

    @property
    def text(self) -> str:
        """The text of the piece without context."""
        assert isinstance(self.content, str)
        return self.content if self.whole else self.content[self.start : self.end]


def piece_length(limit: int | None) -> int:
    """Return the number of characters from which documents are cut, for a sample of `limit` tokens."""
    shortest, longest = PIECE_CHARACTERS
    return longest if limit is None else min(max(limit * CHARACTERS_PER_TOKEN // PIECES_PER_SIDE, shortest), longest)


def find_cuts(content: str | Integer[np.ndarray, "pos"], *, length: int) -> list[int]:
    """Return the ends of a document's pieces of at most `length` characters, or a fourth as many token ids.

    A text is cut before a space between two words if there is one nearby.
    """
    if not isinstance(content, str):
        n_ids = length // CHARACTERS_PER_TOKEN
        return [*range(n_ids, len(content), n_ids), len(content)]
    cuts, start = [], 0
    while len(content) - start > length:
        start = _find_space(content, start + length * 3 // 4, start + length)
        cuts.append(start)
    return [*cuts, len(content)]


def cut_piece(content: str | Integer[np.ndarray, "pos"], cuts: list[int], i: int) -> Piece:
    """Return piece i of a document whose pieces end at `cuts`."""
    start, end = cuts[i - 1] if i else 0, cuts[i]
    last = i == len(cuts) - 1
    if len(cuts) == 1 or not isinstance(content, str):
        return Piece(content[start:end], 0, end - start, len(cuts) == 1, last)
    least, most = CONTEXT_CHARACTERS
    first = _find_space(content, max(0, start - most), start - least) if start > least else 0
    limit = min(len(content), end + least)
    return Piece(content[first:limit], start - first, end - first, False, last)


def _find_space(text: str, start: int, end: int) -> int:
    """Return the last place from `start` to `end` that is before a space between two words, else at any space, else `end`."""
    position, any_space = end, end
    while (position := text.rfind(" ", start, position)) > start:
        if text[position - 1].isalnum() and text[position + 1 : position + 2].isalnum():
            return position
        any_space = position if any_space == end else any_space
    return any_space


def select_tokens(offsets: list[tuple[int, int]], piece: Piece) -> slice:
    """Return the tokens that begin in the piece; `offsets` are those of the tokens of its content."""
    starts = np.fromiter((start for start, _ in offsets), np.int64, len(offsets))
    inside = np.flatnonzero((starts >= piece.start) & ((starts < piece.end) | piece.last))
    return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)


def pieces_of(content: str | Integer[np.ndarray, "pos"], *, length: int) -> Iterator[Piece]:
    """Yield all pieces of a document in order."""
    cuts = find_cuts(content, length=length)
    return (cut_piece(content, cuts, i) for i in range(len(cuts)))
