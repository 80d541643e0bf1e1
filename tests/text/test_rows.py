"""Rows of every format: masks, nulls, halves of surrogate pairs, types of columns, and ids that have no embedding."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crux.config.errors import UserError
from crux.text.sources import TextFiles
from crux.text.token_file import open_token_file
from tests.text.test_tokens import EOT, make_texts, prepare, split_texts

RNG = np.random.default_rng(0)
IDS = [[int(v) for v in RNG.integers(1, 400, n)] + [EOT] for n in RNG.integers(3, 30, 200)]
LENGTH, PAD = 40, 7


def write_columns(path, columns: dict[str, list]) -> TextFiles:
    """Write columns as JSONL, a JSON list, Parquet or Arrow, by the suffix."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".json":
            path.write_text(json.dumps(rows, indent=1))
        case ".parquet":
            pq.write_table(pa.table(columns), path, row_group_size=64)
        case ".arrow":
            table = pa.table(columns)
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
    return TextFiles(path, None)


FORMATS = ["jsonl", "json", "parquet", "arrow"]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [EOT, PAD])
def test_padded_rows_give_the_stream_of_unpadded_rows(tmp_path, suffix, side, pad):
    unpadded = prepare(write_columns(tmp_path / f"unpadded.{suffix}", {"input_ids": IDS}), tmp_path / "cache")
    n_pads = [LENGTH - len(ids) for ids in IDS]
    pads, zeros = [[pad] * n for n in n_pads], [[0] * n for n in n_pads]
    ones = [[1] * len(ids) for ids in IDS]
    before = side == "left"
    columns = {
        "input_ids": [p + i if before else i + p for p, i in zip(pads, IDS, strict=True)],
        "attention_mask": [z + o if before else o + z for z, o in zip(zeros, ones, strict=True)],
    }
    padded = prepare(write_columns(tmp_path / f"padded.{suffix}", columns), tmp_path / "cache")
    assert np.array_equal(padded.train, unpadded.train)
    assert np.array_equal(padded.held_out, unpadded.held_out)
    assert padded.report.train.tokens + padded.report.held_out.tokens == sum(map(len, IDS))


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_mask_of_another_length_is_named_with_file_and_row(tmp_path, suffix):
    columns = {"input_ids": [[1, 2], [1, 2, 3]], "attention_mask": [[1, 1], [1, 1]]}
    with pytest.raises(UserError, match=rf"a\.{suffix}.*2: 'attention_mask' has 2 values, but there are 3 token ids"):
        prepare(write_columns(tmp_path / f"a.{suffix}", columns), tmp_path / "cache")


@pytest.mark.parametrize("suffix", FORMATS)
def test_null_and_empty_rows_are_skipped_and_counted_in_every_format(tmp_path, suffix):
    texts = [*make_texts(60), None, "", None]
    tokens = prepare(write_columns(tmp_path / f"a.{suffix}", {"text": texts}), tmp_path / "cache")
    assert tokens.report.train.documents + tokens.report.held_out.documents == 60
    notes = {n.reason: (n.rows, n.first) for n in tokens.report.skipped_rows}
    assert notes == {"null": (2, f"{tmp_path}/a.{suffix}, row 61"), "empty": (1, f"{tmp_path}/a.{suffix}, row 62")}
    assert (
        prepare(TextFiles(tmp_path / f"a.{suffix}", None), tmp_path / "cache").report == tokens.report
    )  # from the cache
    assert "2 null rows" in " ".join(tokens.report.lines())


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_null_among_ids_and_an_id_without_embedding_are_named_with_file_and_row(tmp_path, suffix):
    source = write_columns(tmp_path / f"a.{suffix}", {"input_ids": [[1], [2], [3, None]]})
    with pytest.raises(UserError, match=rf"a\.{suffix}.*3: .*a null among its token ids"):
        prepare(source, tmp_path / "cache")
    source = write_columns(tmp_path / f"b.{suffix}", {"input_ids": [*IDS, [5, 450]]})
    with pytest.raises(
        UserError, match=rf"b\.{suffix}.*201: the token id 450, but the model's embedding has 450 tokens"
    ):
        prepare(source, tmp_path / "cache", d_vocab=450)
    # the embedding counts, not the tokenizer, which has 400 tokens; and tokens made for a larger model are checked again
    assert prepare(source, tmp_path / "cache", d_vocab=451).report.largest_id == 450
    with pytest.raises(UserError, match="embedding has 450 tokens"):
        prepare(source, tmp_path / "cache", d_vocab=450)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_column_without_a_single_value_gives_way_to_another(tmp_path, suffix):
    """Its type is null, as that of a column of None in pandas; alone, it is a text of null rows."""
    source = write_columns(tmp_path / f"a.{suffix}", {"text": [None] * len(IDS), "input_ids": IDS})
    tokens = prepare(source, tmp_path / "cache")
    assert tokens.report.train.tokens + tokens.report.held_out.tokens == sum(map(len, IDS))
    with pytest.raises(UserError, match="is empty"):
        prepare(write_columns(tmp_path / f"b.{suffix}", {"text": [None] * 5}), tmp_path / "cache")


def test_tokens_that_the_tokenizer_makes_are_checked_too(tmp_path):
    source = write_columns(tmp_path / "a.jsonl", {"text": [*make_texts(40), "ÿ"]})
    with pytest.raises(
        UserError, match=r"a\.jsonl:\d+: the tokenizer gives the token id \d+ .*but the model's embedding has 300"
    ):
        prepare(source, tmp_path / "cache", d_vocab=300)


def test_halves_of_surrogate_pairs_are_replaced_and_counted(tmp_path):
    rows = [*(json.dumps({"text": t}) for t in make_texts(40)), r'{"text": "abc \ud83d def \ud83d\udc0b"}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    tokens = prepare(TextFiles(tmp_path / "a.jsonl", None), tmp_path / "cache")
    assert "abc \ufffd def \U0001f40b" in split_texts(tokens.train) + split_texts(tokens.held_out)
    assert [(n.rows, n.first) for n in tokens.report.changed_rows] == [(1, f"{tmp_path}/a.jsonl, row 41")]


TEXTS = make_texts(60)
COLUMNS = {
    "string": pa.array(TEXTS),
    "large_string": pa.array(TEXTS, pa.large_string()),
    "string_view": pa.array(TEXTS, pa.string_view()),
    "category": pa.array(TEXTS).dictionary_encode(),
    "category of large strings": pa.array(TEXTS, pa.large_string()).dictionary_encode(),
    "binary": pa.array([t.encode() for t in TEXTS], pa.binary()),
    "large_binary": pa.array([t.encode() for t in TEXTS], pa.large_binary()),
}
ROWS = [ids[:3] for ids in IDS]
ID_COLUMNS = {
    "list": pa.array(ROWS, pa.list_(pa.int32())),
    "large_list": pa.array(ROWS, pa.large_list(pa.uint16())),
    "fixed_size_list": pa.array(ROWS, pa.list_(pa.int64(), 3)),
}


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("name", [*COLUMNS, *ID_COLUMNS])
def test_every_type_of_column_gives_the_same_tokens(tmp_path, name, suffix):
    key = "text" if name in COLUMNS else "input_ids"
    column, plain = (COLUMNS | ID_COLUMNS)[name], TEXTS if name in COLUMNS else ROWS
    expected = prepare(write_columns(tmp_path / "a.jsonl", {key: plain}), tmp_path / "cache")
    tokens = prepare(write_columns(tmp_path / f"a.{suffix}", {key: column}), tmp_path / "cache")  # pyright: ignore[reportArgumentType]
    assert np.array_equal(tokens.train, expected.train)
    assert np.array_equal(tokens.held_out, expected.held_out)


def test_binary_that_is_not_utf8_is_named_with_file_and_row(tmp_path):
    source = write_columns(tmp_path / "a.parquet", {"text": pa.array([b"fine", b"caf\xe9"], pa.binary())})  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"a\.parquet, row 2: not UTF-8 \(byte 0xe9 at offset 3\)"):
        prepare(source, tmp_path / "cache")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", ["chosen_input_ids", "input_ids_chosen", "decoder_input_ids"])
def test_each_column_of_ids_has_its_own_mask(tmp_path, suffix, name):
    columns = {
        name: [[5, 6, 7, 0], [8, 9, 0, 0]] * 40,
        name.replace("input_ids", "attention_mask"): [[1, 1, 1, 0], [1, 1, 0, 0]] * 40,
        "attention_mask": [[1], [1]] * 40,  # of other ids
    }
    source = write_columns(tmp_path / f"a.{suffix}", columns)._replace(column=name)
    with pytest.raises(UserError, match="too short: "):  # equal documents may all be on one side
        prepare(source, tmp_path / "cache", min_tokens=10_000)
    (path,) = (tmp_path / "cache" / "tokens").glob("*")
    opened = open_token_file(path)
    assert opened is not None
    tokens = np.concatenate(opened[:2])
    assert len(tokens) == 40 * 5
    assert 0 not in tokens


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_null_mask_is_refused_because_padding_would_be_unknown(tmp_path, suffix):
    columns = {"input_ids": [[1, 2], [1, 2]], "attention_mask": [[1, 0], None]}
    where = {"jsonl": ":2", "json": ", element 2"}.get(suffix, ", row 2")
    with pytest.raises(UserError, match=f"a.{suffix}{where}: 'attention_mask' is null"):
        prepare(write_columns(tmp_path / f"a.{suffix}", columns), tmp_path / "cache")


@pytest.mark.parametrize("masked_first", [True, False])
def test_a_mask_in_some_rows_only_is_refused(tmp_path, masked_first):
    rows = [{"input_ids": [1, 2, 0], "attention_mask": [1, 1, 0]}, {"input_ids": [1, 2, 0]}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows if masked_first else rows[::-1])))
    with pytest.raises(UserError, match=f"a.jsonl:2: {'no' if masked_first else 'a'} mask of the token ids, unlike"):
        prepare(TextFiles(path, None), tmp_path / "cache")


def test_two_columns_of_one_name_are_refused(tmp_path):
    pq.write_table(
        pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / "a.parquet"
    )
    with pytest.raises(UserError, match=r"a\.parquet has 2 columns with the name text"):
        prepare(TextFiles(tmp_path / "a.parquet", None), tmp_path / "cache")


def test_an_arrow_stream_that_ends_between_two_batches_is_not_complete(tmp_path):
    table = pa.table({"text": make_texts(40)})
    path, cut = tmp_path / "a.arrow", 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table.slice(0, 20))
        cut = file.tell()
        writer.write_table(table.slice(20))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"a\.arrow is not a complete Arrow file"):
        prepare(TextFiles(path, None), tmp_path / "cache")


@pytest.mark.parametrize("rest", ['[{"text": "b"}]', "\n\n{}", "x"])
def test_what_follows_a_json_list_is_not_dropped(tmp_path, rest):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "a"}]) + rest)
    with pytest.raises(UserError, match=r"a\.json: something follows its JSON list of 1 elements"):
        prepare(TextFiles(path, None), tmp_path / "cache")


@pytest.mark.parametrize("name", ["part-00000", "a.jsonlines", "a.0", "part-00000.gz"])
def test_json_lines_are_recognised_without_their_suffix(tmp_path, name):
    content = "".join(json.dumps({"text": text}) + "\n" for text in make_texts(200)).encode()
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    named, unnamed = (prepare(TextFiles(tmp_path / n, None), tmp_path / "cache") for n in ("a.jsonl", name))
    assert np.array_equal(named.train, unnamed.train)
    assert np.array_equal(named.held_out, unnamed.held_out)


@pytest.mark.parametrize("suffix", ["jsonl", "txt"])
def test_parquet_with_the_suffix_of_text_is_recognised(tmp_path, suffix):
    pq.write_table(pa.table({"text": make_texts(40)}), tmp_path / f"a.{suffix}")
    with pytest.raises(UserError, match=f"a.{suffix} is Parquet or Arrow by its first bytes"):
        prepare(TextFiles(tmp_path / f"a.{suffix}", None), tmp_path / "cache")
