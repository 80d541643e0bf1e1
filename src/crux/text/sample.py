"""Take the pieces of smallest rank for one side of the text, as many as its limit allows, in the order in which they are read."""

from array import array
from collections.abc import Callable
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import Integer

from crux.text.token_file import TokenWriter

END_OF_RANKS = 1 << 64  # ranks are below
EXCESS = 1.5  # if a side has collected this many times its limit, the largest ranks are no longer collected


class Place(NamedTuple):
    """Where a piece comes from and belongs."""

    rank: int
    """Its place in the order by which pieces are taken, below 2⁶⁴."""
    ordinal: int
    """Its number in the order in which they are read."""
    document: int
    """The number of its document in this order."""
    file: int
    """Index of its file."""
    last: bool
    """True if it is the last piece of its document."""


class SideCounts(NamedTuple):
    """What one side consists of."""

    documents: int
    """Documents of which at least a piece is used."""
    tokens: int
    bytes: int
    """UTF-8 bytes of their text, without end-of-text marks."""
    tokens_by_file: dict[int, int]
    """Tokens from each file, by its index."""


class SideSample:
    """The pieces of one side: all of them, or a sample of at most `limit` tokens.

    Pieces are offered in the order in which they are read. Without a limit they are written at once. With one, those with
    `lower` ≤ rank < `upper` are kept in a temporary file until `finish`, which writes the pieces of smallest rank that fit.
    The piece that reaches the limit is cut there.
    """

    def __init__(self, side: str, writer: TokenWriter, *, limit: int | None, eot: int) -> None:
        self.side, self.writer, self.limit, self.eot = side, writer, limit, eot
        self.lower, self.upper = 0, END_OF_RANKS
        self.collected = 0
        """Tokens collected so far, end-of-text marks included."""
        self._spool: IO[bytes] | None = writer.open_spool() if limit is not None else None
        self._ranks, self._ordinals, self._documents = array("Q"), array("q"), array("q")
        self._files, self._lengths, self._bytes, self._flags = array("l"), array("q"), array("q"), array("b")
        self._counts = SideCounts(0, 0, 0, {})
        self._last_document = -1

    def wants(self, rank: int) -> bool:
        """Return True if a piece of this rank may be part of the sample."""
        return self.lower <= rank < self.upper

    def add(self, ids: Integer[np.ndarray, "pos"], *, place: Place, n_bytes: int, is_text: bool) -> None:
        """Add the tokens of a piece that the side wants; a text is followed by the end-of-text id where it ends."""
        marked = np.append(ids, self.eot) if is_text else ids
        self.collected += len(marked)
        if self._spool is None:
            ids = marked if place.last else ids
            self.writer.write(self.side, ids)
            by_file = self._counts.tokens_by_file
            by_file[place.file] = by_file.get(place.file, 0) + len(ids)
            n_documents = self._counts.documents + (place.document != self._last_document)
            self._last_document = place.document
            self._counts = SideCounts(
                n_documents, self._counts.tokens + len(ids), self._counts.bytes + n_bytes, by_file
            )
            return
        self._spool.write(marked.astype(self.writer.dtype).tobytes())
        self._ranks.append(place.rank)
        self._ordinals.append(place.ordinal)
        self._documents.append(place.document)
        self._files.append(place.file)
        self._lengths.append(len(marked))
        self._bytes.append(n_bytes)
        self._flags.append(2 * is_text + place.last)
        assert self.limit is not None
        if self.collected > EXCESS * self.limit + 1:
            self._lower_threshold()

    def _lower_threshold(self) -> None:
        """Do not collect ranks any more that cannot be part of the sample."""
        assert self.limit is not None
        ranks, lengths = np.array(self._ranks, np.uint64), np.array(self._lengths)
        order = np.argsort(ranks, kind="stable")
        within = int(np.searchsorted(np.cumsum(lengths[order]), self.limit))  # the piece that reaches the limit
        if within + 1 < len(order):
            self.upper = min(self.upper, int(ranks[order[within]]) + 1)
        self.collected = int(lengths[ranks < self.upper].sum()) if self.upper < END_OF_RANKS else self.collected

    def finish(self, count_bytes: Callable[[list[int]], int]) -> SideCounts:
        """Write the sample; return what it consists of.

        Args:
            count_bytes: returns the length of the text of some tokens; called for the piece that the limit cuts.
        """
        if self._spool is None:
            return self._counts
        assert self.limit is not None
        ranks, lengths = np.array(self._ranks, np.uint64), np.array(self._lengths, np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
        ordinals, documents = np.array(self._ordinals, np.int64), np.array(self._documents, np.int64)
        is_text, last = np.array(self._flags, np.int64) >= 2, np.array(self._flags, np.int64) % 2 == 1
        kept = np.argsort(ordinals, kind="stable")
        joined = self._find_joined(kept, ordinals=ordinals, last=last)
        n_cut = 0
        if (lengths[kept] - (joined & is_text[kept])).sum() > self.limit:
            by_rank = np.argsort(ranks, kind="stable")
            total = np.cumsum(lengths[by_rank])
            n_whole = int(np.searchsorted(total, self.limit, side="right"))
            n_cut = self.limit - int(total[n_whole - 1] if n_whole else 0)
            by_rank = by_rank[: n_whole + (n_cut > 0)]
            cut = by_rank[-1] if n_cut else -1
            kept = by_rank[np.argsort(ordinals[by_rank], kind="stable")]
            joined = self._find_joined(kept, ordinals=ordinals, last=last)
        else:
            cut = -1
        n_bytes, n_tokens = np.array(self._bytes, np.int64), lengths.copy()
        for position, i in enumerate(kept):
            self._spool.seek(int(starts[i]) * self.writer.dtype.itemsize)
            ids = np.frombuffer(self._spool.read(int(lengths[i]) * self.writer.dtype.itemsize), self.writer.dtype)
            if i == cut:
                ids = np.array(ids[:n_cut])
                if is_text[i]:
                    n_bytes[i] = count_bytes(ids.tolist())
                    if position + 1 < len(kept):  # so that it is not joined to the next document
                        ids[-1] = self.eot
            elif joined[position] and is_text[i]:
                ids = ids[:-1]
            n_tokens[i] = len(ids)
            self.writer.write(self.side, ids)
        by_file = np.bincount(np.array(self._files)[kept], weights=n_tokens[kept]) if len(kept) else []
        return SideCounts(
            len(np.unique(documents[kept])),
            int(n_tokens[kept].sum()),
            int(n_bytes[kept].sum()),
            {file: int(n) for file, n in enumerate(by_file) if n},
        )

    @staticmethod
    def _find_joined(
        kept: Integer[np.ndarray, "kept"], *, ordinals: Integer[np.ndarray, "all"], last: np.ndarray
    ) -> np.ndarray:
        """Return which of the kept pieces are followed by the next piece of their document."""
        if len(kept) == 0:
            return np.zeros(0, bool)
        return np.append(ordinals[kept[1:]] == ordinals[kept[:-1]] + 1, False) & ~last[kept]
