"""Tokenise all documents of a source into a token file."""

import hashlib
import json
from contextlib import closing

import numpy as np
from jaxtyping import Integer
from tokenizers import Tokenizer

from crux.config.errors import UserError
from crux.config.progress import progress
from crux.text.sources import Source, SourceDocument, describe_source, stream_documents
from crux.text.token_file import SIDES, TokenWriter

CHARACTERS_PER_CALL = 1 << 20  # texts are collected to about this length and encoded in one call of the tokenizer


def tokenise_source(
    writer: TokenWriter, source: Source, *, tokenizer: Tokenizer, eot: int, limits: dict[str, int | None],
    every: int | None,
) -> None:  # fmt: skip
    """Write the tokens of all documents to the sides `train` and `held_out`, until both are full or the documents end.

    The file's metadata also contains the number of documents and of bytes per side, whether all documents were texts, and `every`.

    Args:
        writer: receives the tokens.
        source: source of the documents.
        tokenizer: tokenizer without truncation and padding.
        eot: id appended to each text, but not to documents that are already token ids.
        limits: largest number of tokens per side; None: no limit. The document that reaches it is cut there.
        every: one document in `every` is held out, unless the source lists its held-out documents.

    Raises:
        UserError: for every error of the source, and for ids that are not in the vocabulary.
    """
    document_writer = _DocumentWriter(writer, tokenizer, eot=eot, limits=limits)
    known_limits = [limit for limit in limits.values() if limit is not None]
    total = sum(known_limits) if len(known_limits) == len(limits) else None  # the progress bar has no end otherwise
    n_reported = 0
    name = describe_source(source).rsplit("/", 1)[-1]
    with progress(f"tokenising {name}", total=total) as advance, closing(stream_documents(source)) as stream:
        for document in stream:
            side = "held_out" if is_held_out(document, every=every) else "train"
            if document_writer.is_full(side):  # skip the document; the other side may still need some
                if all(document_writer.is_full(s) for s in SIDES):
                    break
            elif isinstance(document.content, str):
                document_writer.add_text(side, document.content)
            else:
                document_writer.add_ids(side, document.content, source=source)
            advance(sum(writer.counts.values()) - n_reported)
            n_reported = sum(writer.counts.values())
        document_writer.encode_waiting()
    metadata = {
        "documents": document_writer.documents,
        "bytes": document_writer.bytes,
        "text": document_writer.only_text,
        "every": every,
    }
    writer.finish({"crux": json.dumps(metadata)})


def is_held_out(document: SourceDocument, *, every: int | None) -> bool:
    """Return True if the source lists the document as held out or, without a list, if blake2b(content) is divisible by `every`."""
    if document.held_out is not None:
        return document.held_out
    assert every is not None
    content = (
        document.content.encode() if isinstance(document.content, str) else document.content.astype("<i8").tobytes()
    )
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") % every == 0


class _DocumentWriter:
    """A writer that encodes many texts together before it writes them, and counts the documents and bytes that it has written."""

    def __init__(self, writer: TokenWriter, tokenizer: Tokenizer, *, eot: int, limits: dict[str, int | None]) -> None:
        self.writer, self.tokenizer, self.eot, self.limits = writer, tokenizer, eot, limits
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
        self.documents, self.bytes = dict.fromkeys(SIDES, 0), dict.fromkeys(SIDES, 0)
        self.only_text = True
        self._waiting: list[tuple[str, str]] = []
        self._characters = 0

    def is_full(self, side: str) -> bool:
        """Return True if a side has reached its limit."""
        limit = self.limits[side]
        return limit is not None and self.writer.counts[side] >= limit

    def add_text(self, side: str, text: str) -> None:
        """Add a text to those that wait; encode them if they are long enough together."""
        self._waiting.append((side, text))
        self._characters += len(text)
        if self._characters >= CHARACTERS_PER_CALL:
            self.encode_waiting()

    def add_ids(self, side: str, ids: Integer[np.ndarray, "pos"], *, source: Source) -> None:
        """Write a document that is already token ids, after the texts that wait."""
        if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < self.vocab_size):
            invalid_id = int(ids.max() if ids.min() >= 0 else ids.min())
            raise UserError(
                f"{describe_source(source)}: a row has the token id {invalid_id}, the "
                f"vocabulary has {self.vocab_size:,}: it was tokenised for another model"
            )
        self.encode_waiting()
        self.only_text = False
        self._write(side, ids)

    def encode_waiting(self) -> None:
        """Encode and write all texts that wait, each followed by the end-of-text id."""
        texts = [text for _, text in self._waiting]
        for (side, text), encoding in zip(
            self._waiting, self.tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True
        ):
            if self.is_full(side):
                continue
            written = self._write(side, np.array([*encoding.ids, self.eot], np.int64))
            if written < len(encoding.ids):
                # The limit cut the document: count only the text of the tokens that were written. The text is encoded again,
                # because encode_batch_fast leaves out the offsets.
                offsets = self.tokenizer.encode(text, add_special_tokens=False).offsets
                text = text[: offsets[written - 1][1]]
            self.bytes[side] += len(text.encode())
        self._waiting, self._characters = [], 0

    def _write(self, side: str, ids: Integer[np.ndarray, "pos"]) -> int:
        """Write as many ids as the side's limit allows; return their number."""
        limit = self.limits[side]
        ids = ids if limit is None else ids[: limit - self.writer.counts[side]]
        self.writer.write(side, ids)
        self.documents[side] += 1
        return len(ids)
