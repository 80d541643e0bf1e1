"""Readers of text, JSON lines and Parquet, and the division of texts into passages."""

import gzip
import lzma

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import crux.text.readers
from crux.config.errors import UserError
from crux.text.arrow import arrow_rows
from crux.text.passages import passage_length, text_documents
from crux.text.readers import decode_file, json_rows
from crux.text.tokenizer import END_OF_TEXT

property_test = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def small_blocks(monkeypatch):
    """Files are read seven bytes at a time, so that characters, lines and marks are divided between blocks."""
    monkeypatch.setattr(crux.text.readers, "BLOCK_BYTES", 7)


@property_test
@given(st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"])))
def test_text_is_unchanged_for_any_block_boundary(tmp_path, small_blocks, text):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    assert "".join(decode_file(path)) == text


def test_byte_order_mark_is_removed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfword")
    assert "".join(decode_file(path)) == "word"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9 and so on", "not UTF-8: byte 0xe9 at offset 3;"),
        ("ä".encode() * 10 + b"\xff", "byte 0xff at offset 20"),
        (b"cut " + "ä".encode()[:1], "byte 0xc3 at offset 4"),
        (b"some words \0 more", r"offset 11 \(a zero byte"),
        ("words".encode("utf-16"), "byte 0xff at offset 0"),
    ],
)
def test_invalid_utf8_is_reported_with_byte_and_offset(tmp_path, small_blocks, content, message):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        list(decode_file(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pack", [gzip, lzma])
def test_compressed_text_complete_and_truncated(tmp_path, pack):
    path = tmp_path / ("a.txt.gz" if pack is gzip else "a.txt.xz")
    whole = pack.compress(b"one\n\ntwo " * 200)
    path.write_bytes(whole)
    assert "".join(decode_file(path)) == "one\n\ntwo " * 200
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"is not a complete \.[gx]z file"):
        list(decode_file(path))
    path.write_bytes(b"no such thing")
    with pytest.raises(UserError, match=r"is not a complete \.[gx]z file"):
        list(decode_file(path))


def read_json(path, column=None):
    return [row.content for row in json_rows(path, column=column)]


def read_parquet(path, column=None):
    return [row.content for row in arrow_rows(path, column=column, kind="parquet")]


def write_lines(path, *lines):
    path.write_text("\n".join(lines))
    return path


def test_json_lines(tmp_path, small_blocks):
    path = write_lines(tmp_path / "a.jsonl", '{"text": "one\\ntwo"}', "", '{"id": 3, "text": "ä"}', "")
    assert read_json(path) == ["one\ntwo", "ä"]
    path = write_lines(tmp_path / "b.jsonl", '{"body": "x", "text": "y"}\r', '{"body": "z"}')
    assert read_json(path, column="body") == ["x", "z"]
    path = write_lines(tmp_path / "c.jsonl", '{"input_ids": [1, 2]}')
    assert read_json(path) == [[1, 2]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{text: 1}", ":2: not JSON"),
        ('["a"]', ":2: a JSON list; one JSON object per line"),
        ('{"body": "a", "title": "b"}', ":2: no key 'text'; there are: body, title"),
        ('{"text": 3}', ":2: 'text' is neither a text nor"),
        ('{"text": [1, "a"]}', ":2: 'text' is neither"),
        ('{"input_ids": [1, null]}', ":2: 'input_ids' has a null among its token ids"),
        (
            '{"input_ids": [1, 2], "attention_mask": [1]}',
            ":2: 'attention_mask' has 1 values, but there are 2 token ids",
        ),
        ('{"input_ids": [1, 2], "attention_mask": [1, 2]}', ":2: 'attention_mask' is not a list of zeros and ones"),
    ],
)
def test_invalid_line_is_reported_with_its_number(tmp_path, line, message):
    path = write_lines(tmp_path / "a.jsonl", '{"text": "fine"}', line)
    with pytest.raises(UserError, match=message) as error:
        read_json(path)
    assert "\n" not in str(error.value)


def test_line_that_is_not_utf8(tmp_path, small_blocks):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(UserError, match="byte 0xe9 at offset 30"):
        read_json(path)


def test_documents_are_split_at_end_of_text_marks(tmp_path, small_blocks):
    path = tmp_path / "a.txt"
    path.write_text(f"one\n\nstill one\n{END_OF_TEXT}\n  two{END_OF_TEXT}{END_OF_TEXT}\n\nthree{END_OF_TEXT}\n")
    assert list(text_documents(path, length=4)) == ["one\n\nstill one", "  two", "three"]


def test_mark_at_the_end_is_not_a_separator(tmp_path, small_blocks):
    path = tmp_path / "a.txt"
    path.write_text(f"one two\n\nthree four\n\nfive{END_OF_TEXT}\n")
    assert list(text_documents(path, length=6)) == ["one two", "three four", "five"]


def test_passages_are_cut_at_paragraphs_else_lines_else_spaces_else_anywhere(tmp_path):
    def cut(text):
        """Cut a text into passages of 10 to 20 characters."""
        (tmp_path / "a.txt").write_bytes(text.encode())
        return list(text_documents(tmp_path / "a.txt", length=10))

    assert cut("aaaa\r\n\r\nbbbb bbbb\r\n\r\n  cccc cccc cccc") == ["aaaa\n\nbbbb bbbb", "  cccc cccc cccc"]
    assert cut("a" * 15 + "\n" + "b b " * 6) == ["a" * 15, "b b b b b b b b b b", " b b "]
    assert cut("a" * 50) == ["a" * 20, "a" * 20, "a" * 10]
    assert cut(" \n\n \n") == []


@property_test
@given(st.text("ab \n", max_size=300), st.integers(1, 20))
def test_passages_lose_only_white_space(tmp_path, small_blocks, text, length):
    path = tmp_path / "a.txt"
    path.write_text(text)
    documents = list(text_documents(path, length=length))
    squeezed = "".join("".join(documents).split())
    assert squeezed == "".join(text.split())
    assert all(d.strip() and len(d) <= 2 * length for d in documents)


@property_test
@given(st.text("ab \n", max_size=300), st.integers(1, 20), st.integers(1, 50))
def test_passages_do_not_depend_on_the_block_size(tmp_path, text, length, block):
    path = tmp_path / "a.txt"
    path.write_text(text)
    whole = list(text_documents(path, length=length))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crux.text.readers, "BLOCK_BYTES", block)
        assert list(text_documents(path, length=length)) == whole


def test_passage_length_gives_about_a_hundred_documents():
    # of 10 kB, 300 kB and 1 GB; never below 1,024 or above 8,192 characters
    assert [passage_length(n) for n in (10_000, 300_000, 10**9)] == [1024, 3000, 8192]


def test_parquet_texts_and_ids(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one", None, "two"], "n": [1, 2, 3]}), path)
    assert read_parquet(path) == ["one", None, "two"]
    pq.write_table(pa.table({"input_ids": pa.array([[1, 2], [3]], pa.list_(pa.int32())), "n": [1, 2]}), path)
    rows = read_parquet(path)
    assert [list(np.asarray(r)) for r in rows] == [[1, 2], [3]]
    with pytest.raises(
        ValueError, match=r"no column n of texts or token ids; there are: input_ids \(list.*n \(int64\)"
    ):
        read_parquet(path, column="n")


def test_broken_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one"] * 100}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(UserError, match="not a complete Parquet file"):
        read_parquet(path)
    # zeros between the marks at both ends, so that the damage is only found when the footer is read
    path.write_bytes(whole[:4] + bytes(len(whole) - 8 - 20) + whole[-24:])
    with pytest.raises(UserError, match="cannot be read as Parquet") as error:
        read_parquet(path)
    assert "\n" not in str(error.value)
