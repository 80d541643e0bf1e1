"""One pass over a source's documents, into a file of tokens."""

import hashlib
import json
from contextlib import closing

import numpy as np
from jaxtyping import Integer
from tokenizers import Tokenizer

from crux.config.errors import UserError
from crux.config.progress import progress
from crux.text.sources import Piece, Source, describe, pieces
from crux.text.token_file import SIDES, TokenWriter

CHUNK = 1 << 20  # characters encoded at a time


def fill(
    writer: TokenWriter, source: Source, *, tokenizer: Tokenizer, eot: int, limits: dict[str, int | None],
    every: int | None,
) -> None:  # fmt: skip
    """Writes the tokens of all documents, until both sides are full or the documents are through, and what was counted.

    Args:
        writer: takes the tokens.
        source: where the documents come from.
        tokenizer: without truncation and padding.
        eot: id put behind each text, not behind ids that came as such.
        limits: tokens a side at most; None: no limit. The document that reaches it is cut there.
        every: one in so many documents is held out, where the source does not say itself.

    Raises:
        UserError: the source's, and ids beyond the vocabulary.
    """
    filling = _Filling(writer, tokenizer, eot=eot, limits=limits)
    totals = [n for n in limits.values() if n is not None]
    total, counted = sum(totals) if len(totals) == len(limits) else None, 0
    name = describe(source).rsplit("/", 1)[-1]
    with progress(f"tokenising {name} (tokens)", total=total) as advance, closing(pieces(source)) as stream:
        for piece in stream:
            side = SIDES[is_held_out(piece, every=every)]
            if filling.full(side):
                if all(filling.full(s) for s in SIDES):
                    break
            elif isinstance(piece.content, str):
                filling.add_text(side, piece.content)
            else:
                filling.add_ids(side, piece.content, source=source)
            advance(sum(writer.counts.values()) - counted)
            counted = sum(writer.counts.values())
        filling.encode_waiting()
    about = {"documents": filling.documents, "bytes": filling.bytes, "text": filling.only_text, "every": every}
    writer.finish({"crux": json.dumps(about)})


def is_held_out(piece: Piece, *, every: int | None) -> bool:
    """What the source says, or else whether blake2b of the document's content is divisible by `every`."""
    if piece.held_out is not None:
        return piece.held_out
    assert every is not None
    content = piece.content.encode() if isinstance(piece.content, str) else piece.content.astype("<i8").tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") % every == 0


class _Filling:
    """The texts that wait for the encoder, and what was counted."""

    def __init__(self, writer: TokenWriter, tokenizer: Tokenizer, *, eot: int, limits: dict[str, int | None]) -> None:
        self.writer, self.tokenizer, self.eot, self.limits = writer, tokenizer, eot, limits
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
        self.documents, self.bytes = dict.fromkeys(SIDES, 0), dict.fromkeys(SIDES, 0)
        self.only_text = True
        self._waiting: list[tuple[str, str]] = []
        self._characters = 0

    def full(self, side: str) -> bool:
        limit = self.limits[side]
        return limit is not None and self.writer.counts[side] >= limit

    def add_text(self, side: str, text: str) -> None:
        self._waiting.append((side, text))
        self._characters += len(text)
        if self._characters >= CHUNK:
            self.encode_waiting()

    def add_ids(self, side: str, ids: Integer[np.ndarray, "pos"], *, source: Source) -> None:
        if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < self.vocab_size):
            raise UserError(
                f"{describe(source)}: a row has the token id {int(ids.max() if ids.min() >= 0 else ids.min())}, the "
                f"vocabulary has {self.vocab_size:,}: it was tokenised for another model"
            )
        self.encode_waiting()
        self.only_text = False
        self._write(side, ids)

    def encode_waiting(self) -> None:
        texts = [text for _, text in self._waiting]
        for (side, text), encoding in zip(
            self._waiting, self.tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True
        ):
            if self.full(side):
                continue
            written = self._write(side, np.array([*encoding.ids, self.eot], np.int64))
            if written < len(encoding.ids):  # cut: how much of the text is in it
                offsets = self.tokenizer.encode(text, add_special_tokens=False).offsets
                text = text[: offsets[written - 1][1]]
            self.bytes[side] += len(text.encode())
        self._waiting, self._characters = [], 0

    def _write(self, side: str, ids: Integer[np.ndarray, "pos"]) -> int:
        limit = self.limits[side]
        ids = ids if limit is None else ids[: limit - self.writer.counts[side]]
        self.writer.write(side, ids)
        self.documents[side] += 1
        return len(ids)
