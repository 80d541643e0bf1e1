"""The byte-level BPE."""

from hypothesis import given, settings
from hypothesis import strategies as st

from crux.text.tokenizer import END_OF_TEXT, train_bpe

TOKENIZER = train_bpe(["the cat sat on the mat, and the dog sat on the cat"] * 4, vocab_size=300)


def test_end_of_text_is_the_first_id():
    assert TOKENIZER.token_to_id(END_OF_TEXT) == 0
    assert TOKENIZER.encode("a" + END_OF_TEXT).ids[-1] == 0


def test_common_words_are_one_token():
    assert len(TOKENIZER.encode(" the").ids) == 1
    assert TOKENIZER.get_vocab_size() <= 300


@settings(deadline=None, max_examples=100)
@given(st.text())
def test_decoding_inverts_encoding(text):
    if END_OF_TEXT not in text:
        assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text
