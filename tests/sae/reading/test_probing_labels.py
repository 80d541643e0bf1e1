"""Labels from the text, against hand-labelled sentences."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from crux.sae.reading.harvest import ReadText, find_text_begins
from crux.sae.reading.probing_labels import UNDEFINED, ProbeLabels, label_tokens
from crux.sae.reading.sparse_codes import SparseCodes
from crux.subjects.token_texts import TokenText, TokenTexts
from crux.subjects.tokenizer import load_tokenizer


def decode_as(pieces: list[str]) -> Callable[[Sequence[int]], list[TokenText]]:
    """Return a decoder for which token i is the i-th piece."""
    return lambda ids: [TokenText(pieces[i], False) for i in ids]


def label(pieces: list[str], *, end: int | None = None, n_windows: int = 1) -> ProbeLabels:
    windows = np.arange(len(pieces)).reshape(n_windows, -1)
    nothing = SparseCodes(np.zeros(len(pieces) + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), 1)
    read = ReadText(windows, find_text_begins(windows, end), nothing, None)
    return label_tokens(read, decode_as(pieces), end_of_text=end)


PIECES = [
    "x",
    " He",
    " said",
    ",",
    " “",
    "Go",
    " to",
    " the",
    " in",
    "let",
    "!”",
    " Then",
    " 7",
    " men",
    ".",
    " An",
    " end",
]


@pytest.mark.parametrize(
    ("task", "ones", "undefined"),
    [
        ("sentence_start", {11, 15}, {0}),
        ("article", {7, 15}, {0}),
        ("preposition", {6}, {0}),  # `in` is a part of `inlet`
        ("pronoun", {1}, {0}),
        ("next_capital", {4, 10, 14}, {0, 16}),
        ("next_punctuation", {2, 3, 9, 13}, {0, 16}),
        ("next_continues", {8}, {0, 16}),
        ("in_quotation", {4, 5, 6, 7, 8, 9}, {0, 1, 2, 3}),
        ("digit_nearby", {12, 13, 14, 15, 16}, {0}),
        ("early", {1, 2, 3, 4}, {0}),
    ],
)
def test_a_sentence(task: str, ones: set[int], undefined: set[int]) -> None:
    labels = label(PIECES).labels[task]
    assert {int(t) for t in np.nonzero(labels == 1)[0]} == ones
    assert {int(t) for t in np.nonzero(labels == UNDEFINED)[0]} == undefined


def test_straight_quotes_open_after_a_space_and_close_after_a_letter() -> None:
    labels = label(["x", ' "', "No", ',"', " he", " said", ', "', "no", '."', " So"]).labels["in_quotation"]
    assert labels.tolist() == [UNDEFINED, 1, 1, 0, 0, 0, 1, 1, 0, 0]


def test_labels_do_not_cross_the_end_of_a_text() -> None:
    pieces = ["x", " 5", " “", "Yes", "<end>", "No", " more", "."]
    labels = label(pieces, end=4).labels
    assert labels["digit_nearby"].tolist() == [UNDEFINED, 1, 1, 1, UNDEFINED, 0, 0, 0]
    assert labels["in_quotation"].tolist() == [UNDEFINED, UNDEFINED, 1, 1, UNDEFINED, UNDEFINED, UNDEFINED, UNDEFINED]
    assert labels["next_capital"][3] == UNDEFINED
    assert labels["sentence_start"][5] == UNDEFINED
    assert labels["early"].tolist() == [UNDEFINED, 1, 0, 0, UNDEFINED, 1, 1, 0]
    assert label(pieces, end=4).about_next == {"next_capital", "next_punctuation", "next_continues"}


def test_windows_are_labelled_separately_and_further_labels_are_taken() -> None:
    pieces = ["a", " 1", " b", " c", " d", " e"]
    assert label(pieces, n_windows=2).labels["digit_nearby"].tolist() == [UNDEFINED, 1, 1, UNDEFINED, 0, 0]
    windows = np.arange(6).reshape(2, 3)
    nothing = SparseCodes(np.zeros(7, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), 1)
    read = ReadText(windows, find_text_begins(windows, None), nothing, None)
    given = {"source": np.array([1, 1, 1, 0, 0, 0])}
    found = label_tokens(read, decode_as(pieces), end_of_text=None, given=given)
    assert found.labels["source"].tolist() == [UNDEFINED, 1, 1, UNDEFINED, 0, 0]
    assert given["source"].tolist() == [1, 1, 1, 0, 0, 0]


def test_the_packaged_tokenizer() -> None:
    tokenizer, end = load_tokenizer("tiny")
    text = "He was in the house. The 3 men said, “We go now,” and left. And the king"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    windows = np.array([ids])
    nothing = SparseCodes(np.zeros(len(ids) + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), 1)
    texts = TokenTexts(tokenizer)
    labels = label_tokens(
        ReadText(windows, find_text_begins(windows, end), nothing, None), texts, end_of_text=end
    ).labels
    pieces = [piece.text for piece in texts(ids)]

    def words(task: str) -> list[str]:
        return [pieces[t].strip() for t in np.nonzero(labels[task] == 1)[0]]

    assert words("article") == ["the", "The", "the"]
    assert words("sentence_start") == ["The", "And"]
    assert words("preposition") == ["in"]
    quoted = "".join(pieces[t] for t in np.nonzero(labels["in_quotation"] == 1)[0])
    assert "We go now" in quoted
    assert "and" not in quoted
    assert "said" not in quoted
