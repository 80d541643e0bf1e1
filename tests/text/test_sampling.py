"""Limits: what is trained on and what is held out are samples of all files and of the whole of each."""

import json
import lzma
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import crux.text.encode
from crux.config.errors import UserError
from crux.text.sources import SourceDocument, TextFiles
from crux.text.tokenise import is_held_out
from crux.text.tokenizer import END_OF_TEXT
from tests.text.test_tokens import EOT, WORDS, prepare, split_texts, write_rows


def count_first_words(part: np.ndarray) -> Counter[str]:
    """Return the number of documents of a side by their first word."""
    return Counter(t.split()[0] for t in split_texts(part if part[-1] == EOT else np.append(part, EOT)))


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """A list of the lengths of all pieces that are encoded."""
    lengths: list[int] = []
    original = crux.text.encode.Encoder.add

    def add(self, piece, **options):
        lengths.append(len(piece.content))
        original(self, piece, **options)

    monkeypatch.setattr(crux.text.encode.Encoder, "add", add)
    return lengths


def write_domains(folder, sizes: dict[str, int]):
    """Write one file for each word, of documents that begin with it."""
    folder.mkdir()
    for word, n in sizes.items():
        write_rows(folder / f"{word}.jsonl", [f"{word} {i} of the sea and the ship {i * i}" for i in range(n)])
    return TextFiles(folder, None)


@pytest.mark.parametrize(
    "limits", [{"max_tokens": 12_000}, {"held_out_tokens": 2_000}, {"max_tokens": 9_000, "held_out_tokens": 1_500}]
)
def test_each_file_has_its_share_of_both_sides(tmp_path, limits):
    sizes = {"captain": 1000, "whale": 3000, "white": 500, "and": 1500}
    source = write_domains(tmp_path / "in", sizes)
    tokens = prepare(source, tmp_path / "cache", **limits)
    for side, key in (("train", "max_tokens"), ("held_out", "held_out_tokens")):
        part, report = getattr(tokens, side), getattr(tokens.report, side)
        assert len(part) == limits.get(key, len(part))
        counts = count_first_words(part)
        for word, n in sizes.items():
            share = n / sum(sizes.values())
            # which documents are held out is independent of each other: that is the error of a share, even without a limit
            error = np.sqrt(share * (1 - share) / counts.total())
            assert abs(counts[word] / counts.total() - share) < 4 * error, (side, word)
            assert (
                abs(report.tokens_by_file[str(tmp_path / "in" / f"{word}.jsonl")] / report.tokens - share)
                < 5 * error + 0.01
            )
        if key in limits:
            assert report.documents_left_out > 0


def test_a_file_is_sampled_over_its_whole_length(tmp_path):
    source = write_rows(tmp_path / "a.jsonl", [f"{i} whale" for i in range(20_000)])
    tokens = prepare(source, tmp_path / "cache", max_tokens=6_000, held_out_tokens=1_000)
    for part in (tokens.train, tokens.held_out):
        numbers = [int(t.split()[0]) for t in split_texts(part[: np.flatnonzero(part == EOT)[-1] + 1])]
        assert (
            sum(np.diff(numbers) < 0) <= 1
        )  # in the order in which they are read, but for the one that the limit has cut
        n_by_tenth = np.bincount(np.array(numbers) // 2000, minlength=10)
        assert n_by_tenth.min() > 0.6 * len(numbers) / 10, n_by_tenth
        assert n_by_tenth.max() < 1.4 * len(numbers) / 10, n_by_tenth


def write_long(path, kind: str, text: str, short: list[str]) -> TextFiles:
    """Write a text of one long document and some short ones."""
    match kind:
        case "jsonl":
            write_rows(path, [text, *short])
        case "json":
            path.write_text(json.dumps([{"text": t} for t in (text, *short)]))
        case "parquet":
            pq.write_table(pa.table({"text": [text, *short]}), path)
        case "txt":
            path.write_text(END_OF_TEXT.join([text, *short]))
        case "txt.xz":
            path.write_bytes(lzma.compress(END_OF_TEXT.join([text, *short]).encode()))
    return TextFiles(path, None)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "txt", "txt.xz"])
def test_little_more_of_a_long_document_is_encoded_than_requested(tmp_path, encoded, kind):
    # 30,000 numbered words, of which a twentieth is requested; its hash puts it on the training side
    text = " ".join(f"whale{i}" for i in range(120_000))
    assert not is_held_out(SourceDocument(text, None), every=20)
    short = [f"{i} the white ship" for i in range(400)]
    source = write_long(tmp_path / f"a.{kind}", kind, text, short)
    tokens = prepare(source, tmp_path / "cache", max_tokens=30_000)
    assert len(tokens.train) == 30_000
    whole = len(text) * 30_000 / 500_000  # about as many characters
    assert sum(encoded) < 2 * whole
    assert max(encoded) < 10_000
    numbers = np.array(
        [int(w[5:]) for t in split_texts(np.append(tokens.train, EOT)) for w in t.split() if w[5:].isdigit()]
    )
    assert np.ptp(np.histogram(numbers, bins=5, range=(0, 120_000))[0]) < 0.75 * len(numbers) / 5


def test_a_limit_that_does_not_bind_changes_nothing(tmp_path):
    texts = [
        " ".join(f"{WORDS[i % 8]}{j}" for j in range(10 * i)) for i in range(1, 300)
    ]  # some are several pieces long
    source = write_rows(tmp_path / "a.jsonl", texts)
    whole = prepare(source, tmp_path / "cache")
    limited = prepare(source, tmp_path / "cache", max_tokens=len(whole.train), held_out_tokens=len(whole.held_out))
    assert np.array_equal(whole.train, limited.train)
    assert np.array_equal(whole.held_out, limited.held_out)
    assert whole.report.train == limited.report.train
    assert sorted(split_texts(whole.train) + split_texts(whole.held_out)) == sorted(texts)


def test_whole_files_are_held_out_if_there_are_enough(tmp_path):
    (tmp_path / "in").mkdir()
    for k in range(30):
        (tmp_path / "in" / f"book{k}.txt").write_text("\n\n".join(f"book{k} " + "white whale " * 20 for _ in range(20)))
    tokens = prepare(TextFiles(tmp_path / "in", None), tmp_path / "cache")
    train, held_out = ({t.split()[0] for t in split_texts(part)} for part in (tokens.train, tokens.held_out))
    assert not train & held_out
    assert len(held_out) >= 2
    assert len(train | held_out) == 30
    assert tokens.report.division.startswith("one file in ")
    # one file that is a large part of the text is not held out as a whole
    (tmp_path / "in" / "book0.txt").write_text("\n\n".join(f"book0 {i} " + "white whale " * 20 for i in range(400)))
    tokens = prepare(TextFiles(tmp_path / "in", None), tmp_path / "cache")
    assert tokens.report.division == "one passage or document in 20 is held out, by the hash of its content"
    assert len(tokens.held_out) < 0.2 * len(tokens.train)
    for k in [0, *range(10, 30)]:
        (tmp_path / "in" / f"book{k}.txt").unlink()
    tokens = prepare(TextFiles(tmp_path / "in", None), tmp_path / "cache")
    assert tokens.report.division == "one passage or document in 20 is held out, by the hash of its content"


def test_the_owners_splits_are_used(tmp_path):
    (tmp_path / "in").mkdir()
    for name, n in (("train", 200), ("validation", 50), ("test", 40)):
        write_rows(tmp_path / "in" / f"{name}.jsonl", [f"{name} {i}" for i in range(n)])
    source = TextFiles(tmp_path / "in", None)
    tokens = prepare(source, tmp_path / "cache")
    assert count_first_words(tokens.train) == {"train": 200}
    assert count_first_words(tokens.held_out) == {"validation": 50}
    assert tokens.report.every is None
    assert [(s.reason, s.files) for s in tokens.report.skipped_files] == [("of the split test", 1)]
    tokens = prepare(source._replace(held_out_split="test"), tmp_path / "cache")
    assert count_first_words(tokens.held_out) == {"test": 40}
    tokens = prepare(source._replace(split="validation", held_out_split="train"), tmp_path / "cache")
    assert (count_first_words(tokens.train), count_first_words(tokens.held_out)) == ({"validation": 50}, {"train": 200})
    with pytest.raises(UserError, match=r"data\.split=dev2: .* there are: test, train, validation"):
        prepare(source._replace(split="dev2"), tmp_path / "cache")
