"""Finding and checking data files without importing anything heavy."""

import gzip
import subprocess
import sys

import pytest

from crux.config.errors import UserError
from crux.text.folder import detect_format, find_text
from crux.text.paths import check_path


def write_files(folder, **files):
    """Write files named by keywords, in which `__` stands for / and `_` for a dot: a__c_txt is a/c.txt."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def check(path, *, min_tokens=4):
    check_path(path, column=None, split=None, held_out_split=None, min_tokens=min_tokens)


def test_folder_is_searched_recursively_and_sorted(tmp_path):
    write_files(tmp_path, b_txt="b", a__c_jsonl="{}", a__b_txt_gz=b"", README_md="no", a__x_bin="no")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "a.txt").write_text("no")
    names = [str(f.relative_to(tmp_path)) for f in find_text(tmp_path, split=None, held_out_split=None).files]
    assert names == ["a/b.txt.gz", "a/c.jsonl", "b.txt"]


def test_folder_with_only_other_suffixes(tmp_path):
    write_files(tmp_path, a_md="a", b_tex="b", c_png="c")
    assert [f.name for f in find_text(tmp_path, split=None, held_out_split=None).files] == ["a.md", "b.tex"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.txt", "text"), ("a", "text"), ("a.md", "text"), ("A.TXT.GZ", "text"), ("a.v1.jsonl.xz", "jsonl"),
     ("a.json", "jsonl"), ("a.parquet", "parquet"), ("a.csv", "csv"), ("A.TSV.zst", "csv")],
)  # fmt: skip
def test_formats(tmp_path, name, expected):
    assert detect_format(tmp_path / name) == expected


@pytest.mark.parametrize("name", ["a.xlsx.pkl", "a.arrow.gz", "a.parquet.gz", "a.bin", "a.PDF", "a.zip"])
def test_unsupported_suffixes(tmp_path, name):
    (tmp_path / name).write_text("something long enough")
    with pytest.raises(UserError, match="files are not supported; give text"):
        check(tmp_path / name)


def test_missing_path_suggests_similar_names(tmp_path):
    write_files(tmp_path, speeches_txt="a")
    with pytest.raises(UserError, match=r"no such file or folder: /.*/speech\.txt; did you mean speeches\.txt\?"):
        check(tmp_path / "speech.txt")
    # a name that only shares some letters is not suggested
    (tmp_path / "tests").mkdir()
    with pytest.raises(UserError, match=r"no such file or folder: /.*/my_texts$"):
        check(tmp_path / "my_texts")
    with pytest.raises(UserError, match="no such file or folder"):
        check(tmp_path / "nowhere" / "at" / "all.txt")


def test_empty(tmp_path):
    write_files(tmp_path, a_txt="", b__c_txt="")
    (tmp_path / "none").mkdir()
    for path in (tmp_path / "a.txt", tmp_path / "b"):
        with pytest.raises(UserError, match=r"is empty$"):
            check(path)
    with pytest.raises(UserError, match=r"no text, JSONL, CSV, Parquet or Arrow files in .* \(it contains nothing\)"):
        check(tmp_path / "none")
    (tmp_path / "a.txt").write_text(" \n\n   \n" * 3)
    with pytest.raises(UserError, match="contains only white space"):
        check(tmp_path / "a.txt")


def test_not_utf8_and_broken_content(tmp_path):
    write_files(
        tmp_path, a_txt=b"some caf\xe9 and more", b_jsonl="[1, 2]", c_parquet="no parquet at all", d_txt_gz="no gzip"
    )
    for name, message in {
        "a.txt": "not UTF-8: byte 0xe9 at offset 8", "b.jsonl": "b.jsonl:1: a JSON list",
        "c.parquet": "not a complete Parquet file", "d.txt.gz": "not a complete .gz file",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=message):
            check(tmp_path / name)
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8"):
        check(tmp_path)


def test_too_short(tmp_path):
    write_files(tmp_path, a_txt="word " * 10)  # 50 bytes, at most 50 tokens: 25 each for training and held-out text
    check(tmp_path / "a.txt", min_tokens=25)
    with pytest.raises(
        UserError, match="is too short: 50 bytes; at least 26 tokens to train on and 26 held out are needed"
    ):
        check(tmp_path / "a.txt", min_tokens=26)


def test_valid_files_pass(tmp_path):
    # a.txt has 6 MiB, more than is checked
    write_files(
        tmp_path, a_txt="ä" * (3 << 20), b_jsonl='{"text": "words"}\n', c_txt_gz=gzip.compress(b"words"), d_txt=""
    )
    check(tmp_path)
    with pytest.raises(UserError, match="is too short: 18 bytes; at least 10 tokens to train on and 10 held out"):
        check(tmp_path / "b.jsonl", min_tokens=10)
    check(tmp_path / "c.txt.gz", min_tokens=10_000)  # the length of compressed text is not checked before tokenising


def test_nothing_heavy_is_imported():
    code = "import sys, crux.text.paths; print(*{m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names))"
    imported = subprocess.run([sys.executable, "-I", "-c", f"sys=__import__('sys');sys.path[:0]={sys.path!r};{code}"],
                         capture_output=True, text=True, check=True).stdout  # fmt: skip
    assert not {"torch", "numpy", "datasets", "pyarrow", "tokenizers", "lightning"} & set(imported.split())
