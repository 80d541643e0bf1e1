"""Check the files of a path without a tokenizer.

This module imports only the standard library, so that an error is reported at once.
"""

import os
from itertools import islice
from pathlib import Path

from crux.config.errors import UserError
from crux.text.csv_rows import csv_rows, find_delimiter
from crux.text.folder import TextLayout, detect_format, find_text
from crux.text.readers import decode_file, find_compression, json_rows

MAX_BLOCKS_CHECKED, MAX_FILES_CHECKED = 4, 64  # blocks of 1 MiB per file, and files, that `check_path` reads


def check_path(
    path: Path, *, column: str | None, split: str | None, held_out_split: str | None, min_tokens: int
) -> None:
    """Check the first 4 MiB of at most 64 files for errors that can be found without a tokenizer, within milliseconds.

    Args:
        path: file or folder.
        column: the key or column that holds the text; None: `text`, else `input_ids`.
        split: the value of data.split.
        held_out_split: the value of data.held_out_split.
        min_tokens: tokens needed for each of training and held-out text. A token has at least one byte, so that a text
            with fewer bytes is rejected.

    Raises:
        UserError: if the path is missing, empty or too short, or a file is not UTF-8, has a suffix that is not supported,
            is not Parquet despite its name, or has an invalid line of JSON; or if an option has no effect.
    """
    layout = find_text(Path(path), split=split, held_out_split=held_out_split)
    formats = {file: detect_format(file) for file in layout.files}
    if column is not None and set(formats.values()) == {"text"}:
        raise UserError(f"data.column={column} has no effect: text files have no columns")
    if sum(f.stat().st_size for f in formats) == 0:
        raise UserError(f"{path} is empty")
    for file, format_ in list(formats.items())[:MAX_FILES_CHECKED]:
        if file.stat().st_size == 0:
            continue
        match format_:
            case "text":
                text = list(islice(decode_file(file), MAX_BLOCKS_CHECKED))
                if len(formats) == 1 and len(text) < MAX_BLOCKS_CHECKED and not any(t.strip() for t in text):
                    raise UserError(f"{path} contains only white space")
            case "jsonl":
                next(json_rows(file, column=column), None)
            case "csv":
                next(csv_rows(file, column=column, delimiter=find_delimiter(file)), None)
            case "parquet":
                check_parquet(file)
            case "arrow":
                pass  # its column is found when it is read
    # the bytes of compressed files, Parquet and Arrow say nothing about their tokens
    if all(format_ in ("text", "jsonl", "csv") and not find_compression(file) for file, format_ in formats.items()):
        _check_length(path, layout, min_tokens=min_tokens)


def _check_length(path: Path, layout: TextLayout, *, min_tokens: int) -> None:
    """Check that plain files have as many bytes as tokens are needed."""
    sides = [(layout.train, 2 * min_tokens)] if layout.held_out is None else []
    sides = sides or [(layout.train, min_tokens), (layout.held_out or [], min_tokens)]
    for files, n_needed in sides:
        if (size := sum(f.stat().st_size for f in files)) < n_needed:
            raise make_length_error(str(path), f"{size:,} bytes", min_tokens=min_tokens)


def make_length_error(source: str, length: str, *, min_tokens: int) -> UserError:
    """Return the error for a text that is too short."""
    return UserError(
        f"{source} is too short: {length}; at least {min_tokens:,} tokens to train on and {min_tokens:,} held out are needed"
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
