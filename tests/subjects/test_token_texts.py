"""The text of each token of a sequence."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from crux.subjects.token_texts import TokenTexts
from crux.subjects.tokenizer import load_tokenizer

WORDS = ["right be after such and my get men back years man"] * 50
"""The English that the tokenizers of these tests have learned; every other script is in bytes or single characters."""

SAMPLES = [
    "你好，世界",
    "👨‍👩‍👧‍👦 family 🇩🇪",
    "e\u0301te\u0301 naïve",  # accents as separate code points, and as part of the letter
    "שלום עולם مرحبا نَصّ",
    "क्षत्रिय ಕನ್ನಡ",
    "two  spaces,\r\na line",
    "<b>x</b> & ⟨e4⟩",
]


def byte_level() -> Tokenizer:
    """Return GPT-2's kind of tokenizer: the packaged one."""
    return load_tokenizer("tiny").tokenizer


def byte_level_without_decoder() -> Tokenizer:
    tokenizer = Tokenizer.from_str(byte_level().to_str())
    tokenizer.decoder = None  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Return a tokenizer of Llama 2's build, whose decoder removes the space at the beginning of a text."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=[], show_progress=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(WORDS, trainer)
    tokenizer.pre_tokenizer = None  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


def unigram() -> Tokenizer:
    """Return SentencePiece's Unigram with spaces as ▁, as in T5 and XLM-R."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(WORDS + SAMPLES, trainer)
    return tokenizer


def characters() -> Tokenizer:
    """Return a tokenizer without pre-tokenizer and decoder, which splits a text into its code points."""
    letters = sorted(set("".join(SAMPLES + WORDS)))
    return Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))


TOKENIZERS = {
    build.__name__: build for build in (byte_level, byte_level_without_decoder, byte_fallback, unigram, characters)
}


def find_id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None
    return found


def read(tokenizer: Tokenizer, text: str) -> list[str]:
    """Return the text of each token; a + in front of those that are joined to the token before."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return ["+" * joined + text for text, joined in TokenTexts(tokenizer)(ids)]


@pytest.mark.parametrize("build", TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize("sample", SAMPLES)
def test_joined_texts_are_the_text(build: Callable[[], Tokenizer], sample: str) -> None:
    tokenizer = build()
    ids = tokenizer.encode(sample, add_special_tokens=False).ids
    text = "".join(part.text for part in TokenTexts(tokenizer)(ids))
    assert text.removeprefix(" ") == sample  # SentencePiece puts a space in front of a text


def test_a_character_of_several_tokens_is_the_text_of_the_last() -> None:
    assert read(byte_level(), "a你b") == ["a", "", "+", "+你", "b"]
    assert read(byte_fallback(), "你 my") == [" ", "", "+", "+你", " my"]
    assert read(characters(), "e\u0301t") == ["", "+e\u0301", "t"]
    assert read(characters(), "🇩🇪👨‍👩‍👧") == ["", "+🇩🇪", "", "+", "+", "+", "+👨‍👩‍👧"]


def test_bytes_that_form_no_character() -> None:
    tokenizer = byte_level()
    texts, ids = TokenTexts(tokenizer), tokenizer.encode("你好", add_special_tokens=False).ids
    assert len(ids) == 6  # e4 bd a0, e5 a5 bd
    assert [texts([token]) for token in ids] == [[(f"⟨{byte}⟩", False)] for byte in "e4 bd a0 e5 a5 bd".split()]
    assert [text for text, _ in texts(ids[1:])] == ["⟨bd⟩", "⟨a0⟩", "", "", "好"]
    assert [text for text, _ in texts(ids[:-1])] == ["", "", "你", "⟨e5⟩", "⟨a5⟩"]
    surrogate = [find_id(byte_fallback(), f"<0x{byte}>") for byte in ("ED", "A0", "80", "41", "E4")]
    assert [text for text, _ in TokenTexts(byte_fallback())(surrogate)] == ["⟨ed⟩", "⟨a0⟩", "⟨80⟩", "A", "⟨e4⟩"]


def test_a_token_that_ends_one_character_and_begins_another() -> None:
    """Bytes: `a` e4 | bd a0 `b` e5 | a5 bd."""
    alphabet = byte_level().get_vocab()
    symbols = [s for s in alphabet if len(s) == 1]
    pieces = ["aä", "½łbå", "¥½"]
    tokenizer = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(symbols + pieces)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    parts = TokenTexts(tokenizer)([len(symbols), len(symbols) + 1, len(symbols) + 2])
    assert parts == [("a", False), ("你b", True), ("好", True)]


def test_a_single_token_keeps_its_space() -> None:
    """Llama 2's decoder removes the space of a lone token, so that `▁my` and `my` would look the same."""
    metaspace = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁my", -1.0), ("my", -2.0)], 0))
    metaspace.decoder = decoders.Metaspace()
    for tokenizer in (byte_fallback(), metaspace):
        texts = TokenTexts(tokenizer)
        assert texts([find_id(tokenizer, "▁my")])[0].text == " my"
    assert TokenTexts(metaspace)([2])[0].text == "my"


def test_word_pieces() -> None:
    vocabulary = {"[UNK]": 0, "un": 1, "##able": 2, "!": 3, "able": 4, "你": 5}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    for decoder in (None, decoders.WordPiece(cleanup=True)):
        tokenizer.decoder = decoder  # pyright: ignore[reportAttributeAccessIssue]
        texts = ["".join(read(tokenizer, text)) for text in ("able unable", "unable 你")]
        assert texts == [" able unable", " unable 你"]
    assert read(tokenizer, "unable!") == [" un", "able", "!"]  # `cleanup` removes spaces before punctuation


def test_suffixes_that_end_a_word() -> None:
    """GPT-1 marks the end of a word; its decoder puts no space after the last token."""
    tokenizer = Tokenizer(models.BPE(vocab={"th": 0, "e</w>": 1, "cat</w>": 2}, merges=[]))
    tokenizer.decoder = decoders.BPEDecoder()
    assert [text for text, _ in TokenTexts(tokenizer)([0, 1, 2])] == ["th", "e ", "cat "]


def test_words_without_a_decoder_have_spaces_between_them() -> None:
    tokenizer = Tokenizer(models.WordLevel(vocab={"the": 0, "cat": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert read(tokenizer, "the cat") == [" the", " cat"]


def test_added_tokens_and_ids_without_a_token() -> None:
    tokenizer = byte_level()
    end_of_text, n = tokenizer.token_to_id("<|endoftext|>"), tokenizer.get_vocab_size()
    tokenizer.add_tokens([AddedToken("<é 你>", normalized=False)])
    ids = [end_of_text, n, n + 7]  # an embedding may have more rows than the tokenizer has tokens
    assert [text for text, _ in TokenTexts(tokenizer)(ids)] == ["<|endoftext|>", "<é 你>", ""]
    llama = byte_fallback()
    assert "".join(text for text, _ in TokenTexts(llama)([1, *llama.encode("my").ids])) == "<s> my"


@settings(max_examples=200, deadline=None)
@given(st.text(), st.integers(0, 5), st.integers(0, 5))
def test_laws_of_any_part_of_any_text(text: str, start: int, end: int) -> None:
    """The parts of a sequence are the decoded text, in which bytes of cut characters are marked; only U+FFFD hides them there."""
    tokenizer = byte_level()
    texts, ids = TokenTexts(tokenizer), tokenizer.encode(text, add_special_tokens=False).ids
    assert "".join(part.text for part in texts(ids)) == text
    ids = ids[start : len(ids) - end]
    parts = texts(ids)
    assert len(parts) == len(ids)
    decoded = tokenizer.decode(ids, skip_special_tokens=False)
    if "\ufffd" not in decoded:
        assert "".join(part.text for part in parts) == decoded
    assert not parts or not parts[0].joined
