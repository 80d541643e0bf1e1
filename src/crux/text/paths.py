"""Find the data files of a path and check them without a tokenizer.

This module imports only the standard library, so that an error is reported at once.
"""

import difflib
import os
from itertools import islice
from pathlib import Path
from typing import Literal

from crux.config.errors import UserError
from crux.text.readers import decode_file, json_lines

Format = Literal["text", "jsonl", "parquet"]

FORMATS: dict[str, Format] = {
    ".txt": "text", ".text": "text", ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
}  # fmt: skip
UNSUPPORTED_SUFFIXES = frozenset([
    ".7z", ".arrow", ".bin", ".bz2", ".csv", ".doc", ".docx", ".epub", ".h5", ".hdf5", ".jpg", ".npy", ".npz",
    ".pdf", ".pickle", ".pkl", ".png", ".pt", ".pth", ".safetensors", ".tar", ".tgz", ".tsv", ".zip", ".zst",
])  # fmt: skip
MAX_BLOCKS_CHECKED, MAX_FILES_CHECKED = 4, 64  # blocks of 1 MiB per file, and files, that `check_path` reads

MIN_SIMILARITY = 0.75
"""Similarity (difflib's ratio) from which a name is suggested for a missing one; `tests` for `my_texts` has 0.62."""


def split_suffixes(path: Path) -> tuple[str, str]:
    """Return the suffixes for format and compression: `a.jsonl.gz` gives (".jsonl", ".gz")."""
    last = path.suffix.lower()
    return (Path(path.stem).suffix.lower(), last) if last in (".gz", ".xz") else (last, "")


def detect_format(path: Path) -> Format:
    """Return a file's format according to its name; every suffix that is not known counts as text.

    Raises:
        UserError: if the suffix belongs to a format that is not supported.
    """
    suffix, packed = split_suffixes(path)
    format_ = FORMATS.get(suffix, "text")
    if suffix in UNSUPPORTED_SUFFIXES or (format_ == "parquet" and packed):
        raise UserError(
            f"{path}: {suffix + packed} files are not supported; give text (.txt) or JSONL (.jsonl), also as .gz or .xz, "
            "or Parquet (.parquet)"
        )
    return format_


def find_data_files(path: Path) -> list[Path]:
    """Return the file itself, or all data files in a folder and its subfolders, sorted and without hidden ones.

    In a folder these are the files named .txt, .text, .jsonl, .json, .ndjson or .parquet, also with .gz or .xz; other
    files are assumed to be documentation. If there are none of these, all other text files are returned.

    Raises:
        UserError: if there is no such path, or the folder has no data files.
    """
    path = path.expanduser()
    if path.is_file():
        return [path]
    if not path.exists():
        names = os.listdir(path.parent) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=3, cutoff=MIN_SIMILARITY)
        raise UserError(
            f"no such file or folder: {path.absolute()}" + (f"; did you mean {', '.join(near)}?" if near else "")
        )
    inside = sorted(
        f
        for f in path.rglob("*")
        if f.is_file() and not any(part.startswith(".") for part in f.relative_to(path).parts)
    )
    data_files = [f for f in inside if split_suffixes(f)[0] in FORMATS]
    readable = data_files or [f for f in inside if split_suffixes(f)[0] not in UNSUPPORTED_SUFFIXES]
    if not readable:
        kinds = ", ".join(sorted({f.suffix or f.name for f in inside})[:8]) or "nothing"
        raise UserError(f"no text, JSONL or Parquet files in {path.absolute()} (it contains {kinds})")
    return readable


def check_path(path: Path, *, column: str | None, min_tokens: int) -> None:
    """Check the first 4 MiB of at most 64 files for errors that can be found without a tokenizer, within milliseconds.

    Args:
        path: file or folder.
        column: the key or column that holds the text; None: `text`, else `input_ids`.
        min_tokens: tokens needed for each of training and held-out text. A token has at least one byte, so that a text
            with fewer bytes is rejected.

    Raises:
        UserError: if the path is missing, empty or too short, or a file is not UTF-8, has a suffix that is not supported,
            is not Parquet despite its name, or has an invalid line of JSON.
    """
    files = find_data_files(Path(path))
    formats = [detect_format(f) for f in files]
    size = sum(f.stat().st_size for f in files)
    if size == 0:
        raise UserError(f"{path} is empty")
    for file, format_ in list(zip(files, formats, strict=True))[:MAX_FILES_CHECKED]:
        if file.stat().st_size == 0:
            continue
        match format_:
            case "text":
                text = list(islice(decode_file(file), MAX_BLOCKS_CHECKED))
                if len(files) == 1 and len(text) < MAX_BLOCKS_CHECKED and not any(t.strip() for t in text):
                    raise UserError(f"{path} contains only white space")
            case "jsonl":
                next(json_lines(file, column=column), None)
            case "parquet":
                check_parquet(file)
    # bytes say nothing about the tokens of compressed files, JSONL and Parquet
    only_plain_text = all(
        format_ == "text" and not split_suffixes(file)[1] for file, format_ in zip(files, formats, strict=True)
    )
    if only_plain_text and size < 2 * min_tokens:
        raise UserError(
            f"{path} is too short: {size:,} bytes, at least {2 * min_tokens:,} tokens are needed, half of them for the held-out text"
        )


def check_parquet(path: Path) -> None:
    """Raise UserError if the file does not begin and end like a Parquet file, for example because it is truncated."""
    try:
        with path.open("rb") as f:
            head = f.read(4)
            f.seek(-4, os.SEEK_END)
            tail = f.read(4)
    except OSError as e:
        raise UserError(f"{path} cannot be read as Parquet: {e.strerror}") from None
    if (head, tail) != (b"PAR1", b"PAR1"):
        raise UserError(f"{path} is not a complete Parquet file")
