"""Encode pieces of text, many in one call of the tokenizer, and check that the model has an embedding for every token."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer
from tokenizers import Tokenizer

from crux.config.errors import UserError
from crux.text.pieces import Piece, select_tokens
from crux.text.sample import Place, SideSample

CHARACTERS_PER_CALL = 1 << 19  # texts are collected to about this length and encoded in one call of the tokenizer


class _Waiting(NamedTuple):
    side: SideSample
    place: Place
    piece: Piece
    where: Callable[[], str]


class Encoder:
    """Encodes pieces and adds their tokens to the sides that they belong to, in the order in which they come.

    Args:
        tokenizer: tokenizer without truncation and padding.
        d_vocab: number of tokens that the model has an embedding for; None: those of the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, *, d_vocab: int | None) -> None:
        self.tokenizer, self.d_vocab = tokenizer, d_vocab
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
        self.only_text = True
        """False once a document has been added that was token ids already."""
        self.largest_id = -1
        self.waiting_tokens: dict[str, float] = {}
        """About how many tokens wait for each side."""
        self._tokens_per_character = 1.0  # until some texts have been encoded
        self._waiting: list[_Waiting] = []
        self._characters = 0

    def add(self, piece: Piece, *, side: SideSample, place: Place, where: Callable[[], str]) -> None:
        """Add a piece; `where` returns its file and row for messages."""
        self._waiting.append(_Waiting(side, place, piece, where))
        self._characters += len(piece.content)
        rate = self._tokens_per_character if isinstance(piece.content, str) else 1.0
        self.waiting_tokens[side.side] = self.waiting_tokens.get(side.side, 0.0) + rate * (piece.end - piece.start)
        if self._characters >= CHARACTERS_PER_CALL:
            self.encode_waiting()

    def encode_waiting(self) -> None:
        """Encode all pieces that wait, and add them to their sides."""
        waiting, self._waiting, self._characters = self._waiting, [], 0
        self.waiting_tokens = {}
        ids = iter(self._encode([w.piece for w in waiting if isinstance(w.piece.content, str)]))
        for side, place, piece, where in waiting:
            if isinstance(piece.content, str):
                tokens, n_bytes = next(ids), len(piece.text.encode())
            else:
                tokens, n_bytes = piece.content, 0
                self.only_text = False
            self._check(tokens, is_text=isinstance(piece.content, str), where=where)
            side.add(tokens, place=place, n_bytes=n_bytes, is_text=isinstance(piece.content, str))

    def _encode(self, pieces: list[Piece]) -> list[Integer[np.ndarray, "pos"]]:
        """Return the token ids of pieces of text."""
        whole = [str(p.content) for p in pieces if p.whole]
        parts = [str(p.content) for p in pieces if not p.whole]  # only these need offsets
        encoded = iter(self.tokenizer.encode_batch_fast(whole, add_special_tokens=False))
        with_offsets = iter(self.tokenizer.encode_batch(parts, add_special_tokens=False))
        ids = []
        for piece in pieces:
            if piece.whole:
                ids.append(np.array(next(encoded).ids, np.int64))
            else:
                encoding = next(with_offsets)
                ids.append(np.array(encoding.ids[select_tokens(encoding.offsets, piece)], np.int64))
        if characters := sum(p.end - p.start for p in pieces):
            self._tokens_per_character = sum(len(i) for i in ids) / characters
        return ids

    def _check(self, ids: Integer[np.ndarray, "pos"], *, is_text: bool, where: Callable[[], str]) -> None:
        """Raise UserError if the model has no embedding for one of the ids."""
        if len(ids) == 0:
            return
        low, high = int(ids.min()), int(ids.max())
        self.largest_id = max(self.largest_id, high)
        size = self.vocab_size if self.d_vocab is None else self.d_vocab
        if low >= 0 and high < size:
            return
        holder = "the vocabulary has" if self.d_vocab is None else "the model's embedding has"
        if is_text:
            raise UserError(
                f"{where()}: the tokenizer gives the token id {high} ({self.tokenizer.id_to_token(high)!r}), but {holder} {size:,} "
                "tokens: the tokenizer is of another model, or the embedding was not enlarged when tokens were added"
            )
        raise UserError(
            f"{where()}: the token id {high if low >= 0 else low}, but {holder} {size:,} tokens: it was tokenised for another model"
        )
