"""Where text comes from: the packaged one, the user's files, a data set of the hub; each a stream of documents."""

import hashlib
from collections.abc import Generator, Iterator
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

from crux.text.hub import hub_documents
from crux.text.packaged import Document, documents, held_out_ids
from crux.text.passages import passage_length, text_documents
from crux.text.paths import data_files, format_of, suffixes
from crux.text.readers import json_lines

HASHED_BYTES = 256 << 20  # files of more in all are known by name, size and time of change, not by their bytes


class Packaged(NamedTuple):
    """The packaged text; held out is what assets/text/heldout.txt lists."""

    sources: tuple[str, ...]
    """Some of `packaged.SOURCES`."""


class Files(NamedTuple):
    """The user's own text, JSONL or Parquet: a file, or a folder of them."""

    path: Path
    """File or folder."""
    column: str | None
    """The key or column of the text or the token ids; None: `text`, else `input_ids`."""


class Hub(NamedTuple):
    """A data set of the Hugging Face hub."""

    name: str
    """`owner/name`."""
    config: str | None
    """The data set's configuration (subset); None: its only or default one."""
    split: str
    """Its split, `train` mostly; ours into training and held-out documents is made within it."""
    revision: str | None
    """Commit or branch; None: main, as it was when it was first read."""
    column: str | None
    """The column of the text or the token ids; None: `text`, else `input_ids`."""


Source = Packaged | Files | Hub


class Piece(NamedTuple):
    """One document on its way to the tokens."""

    content: str | Integer[np.ndarray, "pos"]
    """Its text, or token ids to be taken as they are."""
    held_out: bool | None
    """What the source says; None: the hash of the content decides."""


def pieces(source: Source) -> Generator[Piece, None, None]:
    """The documents, in an order that never changes; empty ones are left out.

    The packaged ones come in the order of their ids' hashes, so that every part of the stream has old and new speeches,
    scripture and novel in it; the others as they lie in the files.

    Raises:
        UserError: the user's mistakes with files and data sets, each in one line.
    """
    match source:
        case Packaged(sources):
            held_out = held_out_ids()
            for document in sorted((d for s in sources for d in documents(s)), key=_by_hash):
                yield Piece(document.text, document.id in held_out)
        case Files(path, column):
            found = data_files(path)
            length = passage_length(sum(f.stat().st_size for f in found))
            for file in found:
                yield from (Piece(c, None) for c in _contents(file, column=column, length=length) if len(c))
        case Hub(name, config, split, revision, column):
            rows = hub_documents(name, config=config, split=split, revision=revision, column=column)
            yield from (Piece(c, None) for c in rows if len(c))


def describe(source: Source) -> str:
    """What to call it in a message."""
    match source:
        case Packaged(sources):
            return f"the packaged text ({', '.join(sources)})"
        case Files(path):
            return str(path)
        case Hub(name):
            return f"data set {name}"


def fingerprint(source: Source) -> dict[str, str | list[str] | None]:
    """What tells this content from any other, for the key of the cache.

    Packaged: hashes of the assets. Files: hashes of their bytes, so that a moved or copied file is known again; where
    they have more than 256 MB in all, their names, sizes and times of change. Hub: name, config, split, revision.
    """
    match source:
        case Packaged(sources):
            folder = files("crux.assets") / "text"
            names = [*(f"{s}.jsonl.xz" for s in sources), "heldout.txt"]
            return {"packaged": [hashlib.blake2b((folder / n).read_bytes()).hexdigest() for n in names]}
        case Files(path, column):
            found = data_files(path)
            small = sum(f.stat().st_size for f in found) <= HASHED_BYTES
            return {"files": [_file_hash(f) if small else _file_state(f) for f in found], "column": column}
        case Hub():
            return {"hub": None, **source._asdict()}


def _contents(path: Path, *, column: str | None, length: int) -> Iterator[str | Integer[np.ndarray, "pos"]]:
    match format_of(path):
        case "text":
            yield from text_documents(path, length=length)
        case "jsonl":
            for value in json_lines(path, column=column):
                yield value if isinstance(value, str) else np.array(value, np.int64)
        case "parquet":
            from crux.text.parquet import parquet_documents  # pyarrow takes its time

            yield from parquet_documents(path, column=column)


def _by_hash(document: Document) -> bytes:
    return hashlib.blake2b(document.id.encode(), digest_size=8).digest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as f:
        return "".join(suffixes(path)) + " " + hashlib.file_digest(f, "blake2b").hexdigest()


def _file_state(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
