"""Texts in tables: CSV and TSV files, also compressed."""

import csv
import gzip

import pytest

from crux.config.errors import UserError
from crux.text.csv_rows import csv_rows, find_delimiter
from crux.text.folder import find_text
from crux.text.sources import TextFiles
from tests.text.test_tokens import make_texts, prepare, split_texts

AWKWARD = ["a, b", 'she said "no"', "two\nlines", "tab\there", "ÿ 😀", " ", "x" * 200_000]


def read(path, column=None):
    return [(row.number, row.content) for row in csv_rows(path, column=column, delimiter=find_delimiter(path))]


def write(path, rows, delimiter=","):
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


@pytest.mark.parametrize(
    ("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t"), ("a.csv.gz", ","), ("A.TSV.gz", "\t")]
)
def test_cells_with_delimiters_quotes_line_ends_and_any_length(tmp_path, name, delimiter):
    path = write(tmp_path / name, [["id", "text"], *([i, text] for i, text in enumerate(AWKWARD))], delimiter)
    assert read(path) == list(enumerate(AWKWARD, start=1))
    assert read(path, column="id") == [(i + 1, str(i)) for i in range(len(AWKWARD))]


def test_empty_cells_are_null_and_counted(tmp_path):
    texts = make_texts(60)
    path = write(tmp_path / "a.csv", [["text"], *([t] for t in texts)])
    with path.open("a") as file:
        file.write('""\r\n\r\n')
    tokens = prepare(TextFiles(path, None), tmp_path / "cache")
    assert sorted(split_texts(tokens.train) + split_texts(tokens.held_out)) == sorted(texts)
    assert [(n.reason, n.rows, n.first) for n in tokens.report.skipped_rows] == [("null", 1, f"{path}, row 61")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("body,id\na,1\n", "no column 'text' in its first line, which names body, id"),
        ("text,text\na,1\n", "2 times the column 'text'"),
        ("", "no column 'text' in its first line, which names none"),
        ("text,id\na,1\nb\n", "row 2: 1 cells, but the first line names 2 columns"),
        ('text,id\n"a,1\n', "not a table of cells"),
        ("input_ids\n[1 2]\n", "give token ids as JSONL or Parquet"),
    ],
)
def test_mistakes_name_the_file_and_the_row(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / "a.csv")
    assert str(caught.value).startswith(str(tmp_path / "a.csv"))


def test_a_table_next_to_texts_is_not_read(tmp_path):
    (tmp_path / "metadata.csv").write_text("file,year\na.txt,1851\n")
    assert find_text(tmp_path, split=None, held_out_split=None).train == [tmp_path / "metadata.csv"]
    (tmp_path / "a.txt").write_text("words")
    layout = find_text(tmp_path, split=None, held_out_split=None)
    assert layout.train == [tmp_path / "a.txt"]
    assert [(s.path.name, s.reason) for s in layout.skipped] == [("metadata.csv", "a table next to texts")]
