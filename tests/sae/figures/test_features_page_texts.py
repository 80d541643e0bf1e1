"""Pieces: each distinct text is stored once, and what is read from them is what the tokenizer makes of the whole window."""

from collections.abc import Sequence

import numpy as np
import pytest

from crux.sae.figures.features_page_texts import Pieces, mark_joined, show_text
from crux.sae.figures.visible_text import make_visible
from crux.subjects.token_texts import TokenText, TokenTexts
from crux.subjects.tokenizer import load_tokenizer

TEXTS = [
    "plain English, with\nlines and  spaces",
    "a你b 你好 👨‍👩‍👧‍👦 🇩🇪 שלום مرحبا क्षत्रिय e\u0301 naïve x",
    "ends in 你",
    "你",
]


@pytest.fixture(scope="module")
def read_tokens() -> TokenTexts:
    return TokenTexts(load_tokenizer("tiny").tokenizer)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_and_joints_are_those_of_the_whole_window(text: str, read_tokens: TokenTexts) -> None:
    ids = np.array(load_tokenizer("tiny").tokenizer.encode(text, add_special_tokens=False).ids)
    windows = np.stack([ids, ids[::-1]])  # reversed: many bytes that form no character
    pieces = Pieces(read_tokens)
    numbers = pieces.number_windows(windows)
    table, joined = pieces.table(), mark_joined(windows, read_tokens).reshape(windows.shape)
    for row in range(2):
        whole = read_tokens(windows[row].tolist())
        assert [table[n].text for n in numbers[row]] == [make_visible(part.text) if part.text else "" for part in whole]
        assert [table[n].joined for n in numbers[row]] == [part.joined for part in whole] == joined[row].tolist()
        assert [table[n].token for n in numbers[row]] == windows[row].tolist()
    visible = "".join(table[n].text for n in numbers[0])
    assert visible.replace("↵", "\n") == text


def test_only_windows_with_unusual_characters_are_read_as_a_whole(read_tokens: TokenTexts) -> None:
    calls: list[int] = []

    def counted(ids: Sequence[int]) -> list[TokenText]:
        calls.append(len(ids))
        return read_tokens(ids)

    ids = np.array(load_tokenizer("tiny").tokenizer.encode("only plain words here", add_special_tokens=False).ids)
    Pieces(counted).number_windows(np.tile(ids, (50, 1)))
    assert set(calls) == {1}
    assert len(calls) == len(set(ids.tolist()))


def test_each_piece_is_stored_once(read_tokens: TokenTexts) -> None:
    pieces = Pieces(read_tokens)
    first = pieces.number_token(100)
    assert pieces.number_words("within") != first
    assert pieces.number_token(100) == first
    assert pieces.number_windows(np.array([[100, 100]])).tolist() == [[first, first]]
    assert len(pieces) == 2
    unknown = pieces.number_token(5000)
    assert pieces.table()[unknown].text == "⟨token 5000⟩"  # the tokenizer has no such token


def test_lone_surrogates_and_controls_are_shown() -> None:
    assert show_text("a\ud800b\x00") == "a⟨d800⟩b␀"
    assert show_text("") == ""
