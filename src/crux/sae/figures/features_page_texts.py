"""The texts of tokens and words on the page of latents: each distinct one is stored once, and is referred to by its number.

A token that holds a part of a character has another text from sequence to sequence, so a text and a token are not the same: a *piece* is
a token id with its text at one place, and a place in the stored text is the number of a piece.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from crux.sae.figures.visible_text import make_visible
from crux.subjects.token_texts import TokenText

ReadTokens = Callable[[Sequence[int]], Sequence[TokenText]]
"""A function that returns the text of each token of a sequence."""


class Piece(NamedTuple):
    """A token with its text at some place, or words of a rule."""

    text: str
    """What is shown; empty for a token whose characters end in a later one."""
    token: int
    """Its id; −1 for words."""
    joined: bool
    """True if a character has a part in the token before and a part in this one."""


class Pieces:
    """The pieces of a page, numbered in the order in which they are first asked for."""

    def __init__(self, read_tokens: ReadTokens) -> None:
        self._read_tokens = read_tokens
        self._numbers: dict[Piece, int] = {}
        self._alone: dict[int, TokenText] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def table(self) -> list[Piece]:
        """Return all pieces so far, in the order of their numbers."""
        return list(self._numbers)

    def number_token(self, token: int) -> int:
        """Return the number of a token outside any sequence."""
        return self._number(Piece(show_text(self._read_alone(token).text) or f"⟨token {token}⟩", token, False))

    def number_words(self, words: str) -> int:
        """Return the number of words that are not the text of a token."""
        return self._number(Piece(show_text(words), -1, False))

    def number_windows(self, windows: Int[np.ndarray, "windows context"]) -> Int[np.ndarray, "windows context"]:
        """Return the number of each token of some windows, with its text in its window."""
        tokens, inverse = np.unique(windows, return_inverse=True)
        texts = [self._read_alone(token) for token in tokens.tolist()]
        whole = [Piece(show_text(text.text), token, False) for text, token in zip(texts, tokens.tolist(), strict=True)]
        plain = np.array([_is_plain(text) for text in texts])
        numbers = np.array([self._number(piece) if ok else -1 for piece, ok in zip(whole, plain, strict=True)])
        inverse = inverse.reshape(windows.shape)
        found = numbers[inverse]
        for row, first, last in _ranges_to_read(plain[inverse]):
            ids = windows[row, first:last].tolist()
            for place, token, text in zip(range(first, last), ids, self._read_tokens(ids), strict=True):
                found[row, place] = self._number(Piece(show_text(text.text), token, text.joined))
        return found

    def _read_alone(self, token: int) -> TokenText:
        if token not in self._alone:
            self._alone[token] = self._read_tokens([token])[0]
        return self._alone[token]

    def _number(self, piece: Piece) -> int:
        return self._numbers.setdefault(piece, len(self._numbers))


def mark_joined(windows: Int[np.ndarray, "windows context"], read_tokens: ReadTokens) -> Bool[np.ndarray, "tokens"]:
    """Return, token by token, whether a character has a part in the token before and a part in this one."""
    tokens, inverse = np.unique(windows, return_inverse=True)
    plain = np.array([_is_plain(read_tokens([token])[0]) for token in tokens.tolist()])
    joined = np.zeros(windows.shape, bool)
    for row, first, last in _ranges_to_read(plain[inverse.reshape(windows.shape)]):
        joined[row, first:last] = [text.joined for text in read_tokens(windows[row, first:last].tolist())]
    return joined.reshape(-1)


def show_text(text: str) -> str:
    """Return a text with visible control characters, and lone surrogates, which no file can hold, as `⟨d800⟩`."""
    visible = make_visible(text) if text else ""
    return "".join(f"⟨{ord(c):x}⟩" if "\ud800" <= c <= "\udfff" else c for c in visible)


def _is_plain(text: TokenText) -> bool:
    """Return whether a token has the same text in every sequence, unless its neighbours' is not plain."""
    return text.text != "" and text.text.isascii()


def _ranges_to_read(plain: Bool[np.ndarray, "windows context"]) -> list[tuple[int, int, int]]:
    """Return row, first token and end of the stretches of tokens that are not plain, with one plain token on either side.

    Characters never reach beyond them: none joins two tokens of ASCII.
    """
    near = ~plain
    near[:, :-1] |= ~plain[:, 1:]
    near[:, 1:] |= ~plain[:, :-1]
    edges = np.diff(np.pad(near, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, firsts = np.nonzero(edges == 1)
    _, ends = np.nonzero(edges == -1)
    return list(zip(rows.tolist(), firsts.tolist(), ends.tolist(), strict=True))
