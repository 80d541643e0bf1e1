"""Which files a path means, and the checks that need no tokenizer. Standard library only: a mistake is reported at once."""

import difflib
import os
from itertools import islice
from pathlib import Path
from typing import Literal

from crux.config.errors import UserError
from crux.text.readers import decoded, json_lines

Format = Literal["text", "jsonl", "parquet"]

FORMATS: dict[str, Format] = {
    ".txt": "text", ".text": "text", ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
}  # fmt: skip
REFUSED = frozenset([
    ".7z", ".arrow", ".bin", ".bz2", ".csv", ".doc", ".docx", ".epub", ".h5", ".hdf5", ".jpg", ".npy", ".npz",
    ".pdf", ".pickle", ".pkl", ".png", ".pt", ".pth", ".safetensors", ".tar", ".tgz", ".tsv", ".zip", ".zst",
])  # fmt: skip
CHECKED_BLOCKS, CHECKED_FILES = 4, 64  # what `check_path` looks at


def suffixes(path: Path) -> tuple[str, str]:
    """The ending that tells the format, and that of the compression: `a.jsonl.gz` -> (".jsonl", ".gz")."""
    last = path.suffix.lower()
    return (Path(path.stem).suffix.lower(), last) if last in (".gz", ".xz") else (last, "")


def format_of(path: Path) -> Format:
    """The format by the file's name; whatever is not JSONL, Parquet or known to be no text counts as text.

    Raises:
        UserError: where the name says that the file is none of these.
    """
    suffix, packed = suffixes(path)
    form = FORMATS.get(suffix, "text")
    if suffix in REFUSED or (form == "parquet" and packed):
        raise UserError(
            f"{path}: {suffix + packed} files are not read; give text (.txt) or JSONL (.jsonl), also as .gz or .xz, "
            "or Parquet (.parquet)"
        )
    return form


def data_files(path: Path) -> list[Path]:
    """The file itself, or a folder's files, recursively and sorted, hidden ones left out.

    In a folder the files named .txt, .text, .jsonl, .json, .ndjson or .parquet count (.gz and .xz as well), and the
    rest is taken for descriptions; only where there are none does every other text file count.

    Raises:
        UserError: where nothing is there, with what was looked for.
    """
    path = path.expanduser()
    if path.is_file():
        return [path]
    if not path.exists():
        near = difflib.get_close_matches(path.name, os.listdir(path.parent) if path.parent.is_dir() else [], n=3)
        raise UserError(
            f"no such file or folder: {path.absolute()}" + (f"; did you mean {', '.join(near)}?" if near else "")
        )
    inside = sorted(
        f for f in path.rglob("*") if f.is_file() and not any(p.startswith(".") for p in f.relative_to(path).parts)
    )
    named = [f for f in inside if suffixes(f)[0] in FORMATS]
    found = named or [f for f in inside if suffixes(f)[0] not in REFUSED]
    if not found:
        kinds = ", ".join(sorted({f.suffix or f.name for f in inside})[:8]) or "nothing"
        raise UserError(f"no text, JSONL or Parquet files in {path.absolute()} (it holds {kinds})")
    return found


def check_path(path: Path, *, column: str | None, min_tokens: int) -> None:
    """Finds the mistakes that need no tokenizer, within milliseconds: reads the first 4 MB of at most 64 files.

    Args:
        path: file or folder.
        column: the key or column that holds the text; None: `text`, else `input_ids`.
        min_tokens: tokens needed on each side of the split. A token is a byte or more: a shorter text is refused.

    Raises:
        UserError: missing, empty, not UTF-8, an ending that is not read, no Parquet, a broken line of JSON, too short.
    """
    files = data_files(Path(path))
    forms = [format_of(f) for f in files]
    size = sum(f.stat().st_size for f in files)
    if size == 0:
        raise UserError(f"{path} is empty")
    for file, form in list(zip(files, forms, strict=True))[:CHECKED_FILES]:
        if file.stat().st_size == 0:
            continue
        match form:
            case "text":
                text = list(islice(decoded(file), CHECKED_BLOCKS))
                if len(files) == 1 and len(text) < CHECKED_BLOCKS and not any(t.strip() for t in text):
                    raise UserError(f"{path} is empty but for blank space")
            case "jsonl":
                next(json_lines(file, column=column), None)
            case "parquet":
                check_parquet(file)
    if all(f == "text" and not suffixes(p)[1] for p, f in zip(files, forms, strict=True)) and size < 2 * min_tokens:
        raise UserError(
            f"{path} is too short: {size:,} bytes, at least {2 * min_tokens:,} tokens are needed, half of them held out"
        )


def check_parquet(path: Path) -> None:
    """Raises UserError where the file does not begin and end as Parquet does, as a truncated one does not."""
    try:
        with path.open("rb") as f:
            head = f.read(4)
            f.seek(-4, os.SEEK_END)
            tail = f.read(4)
    except OSError as e:
        raise UserError(f"{path} cannot be read as Parquet: {e.strerror}") from None
    if (head, tail) != (b"PAR1", b"PAR1"):
        raise UserError(f"{path} is not a whole Parquet file")
