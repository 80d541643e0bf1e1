"""The text of each token of a sequence, for people to read: whole characters, and the bytes that form none.

`tokenizer.decode([id])` is not the text of a token: a token may hold a part of a character, and decoders treat the beginning of a text
in a special way (Llama 2's removes the space of a lone `▁the`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import regex
from tokenizers import Tokenizer, decoders

ANCHOR = "qq"
"""A token that is decoded before and after another one, so that the other one is decoded as in the middle of a text."""

CHARACTER = regex.compile(r"[\r\n]|\X")
"""Matches one character as readers see it: a letter with its accents, or an emoji of several code points. Line breaks are separate."""

BYTE_TOKEN = regex.compile(r"<0x([0-9A-Fa-f]{2})>")
"""The tokens of single bytes of SentencePiece's byte fallback."""


class TokenText(NamedTuple):
    """The text of a token in its sequence."""

    text: str
    """The characters that end in the token; a byte that is part of no character is written `⟨e4⟩`."""
    joined: bool
    """True if a character has a part in the token before and a part in this one."""


class TokenTexts:
    """Decodes the tokens of a sequence one by one.

    Joined, their texts are the decoded sequence, as in the middle of a longer text. A character that is made of several tokens is the
    text of the last one, and those after its first are `joined`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._decoder = tokenizer, tokenizer.decoder or _implied_decoder(tokenizer)
        self._added = {token_id: token.content for token_id, token in tokenizer.get_added_tokens_decoder().items()}
        self._byte_level = self._decode("Ã©") == "é"
        self._byte_fallback = self._decode("<0xC3>", "<0xA9>") == "é"
        self._front = len(self._decode(ANCHOR))
        self._back = len(self._decode(ANCHOR, ANCHOR)) - self._front
        self._bytes: dict[int, bytes] = {}

    def __call__(self, ids: Sequence[int]) -> list[TokenText]:
        """Return the text of each token."""
        token_bytes = [self._bytes_of(token_id) for token_id in ids]
        owners = [index for index, data in enumerate(token_bytes) for _ in data]  # the token of each byte
        texts, joined = [""] * len(ids), [False] * len(ids)
        position = 0
        # a byte that is part of no character becomes one surrogate
        for character in CHARACTER.findall(b"".join(token_bytes).decode("utf-8", "surrogateescape")):
            end = position + len(character.encode("utf-8", "surrogateescape"))
            first, last = owners[position], owners[end - 1]
            texts[last] += "".join(_write_byte(code_point) for code_point in character)
            joined[first + 1 : last + 1] = [True] * (last - first)
            position = end
        return [TokenText(*pair) for pair in zip(texts, joined, strict=True)]

    def _bytes_of(self, token_id: int) -> bytes:
        if token_id not in self._bytes:
            self._bytes[token_id] = self._find_bytes(token_id)
        return self._bytes[token_id]

    def _find_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token in the middle of a text; none if the tokenizer has no such token."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None:  # some embeddings are larger than the tokenizer
            return b""
        if self._byte_level:
            if token_id in self._added:
                return self._added[token_id].encode()
            if all(symbol in BYTE_LEVEL_ALPHABET for symbol in token):
                return bytes(BYTE_LEVEL_ALPHABET[symbol] for symbol in token)
        if self._byte_fallback and (match := BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        between = self._decode(ANCHOR, token, ANCHOR)
        return between[self._front : len(between) - self._back].encode()

    def _decode(self, *tokens: str) -> str:
        return self._decoder.decode(list(tokens)) if self._decoder is not None else " ".join(tokens)


def _write_byte(code_point: str) -> str:
    """Return a code point as it is, or `⟨e4⟩` for the surrogate of a byte."""
    return f"⟨{ord(code_point) - 0xDC00:02x}⟩" if "\udc80" <= code_point <= "\udcff" else code_point


def _implied_decoder(tokenizer: Tokenizer) -> decoders.Decoder | None:
    """Return a decoder that undoes what a tokenizer without one does to a text; None: put a space between tokens, as `decode` does."""
    if type(tokenizer.model).__name__ == "WordPiece":
        return decoders.WordPiece(cleanup=False)
    sample = "é é"
    if tokenizer.normalizer is not None:
        sample = tokenizer.normalizer.normalize_str(sample)
    if tokenizer.pre_tokenizer is not None:
        sample = "".join(piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(sample))
    if "Ã" in sample:
        return decoders.ByteLevel()
    if "▁" in sample:
        return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return decoders.Fuse() if " " in sample else None


def _byte_level_alphabet() -> dict[str, int]:
    """Return the byte that each symbol of a byte-level vocabulary stands for (GPT-2's `bytes_to_unicode`, inverted)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_LEVEL_ALPHABET = _byte_level_alphabet()
