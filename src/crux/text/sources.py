"""Sources of text as streams of documents: the packaged text, the user's files, or a data set on the hub."""

import hashlib
from collections.abc import Generator, Iterator
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

from crux.text.hub import hub_documents
from crux.text.packaged import PackagedDocument, held_out_ids, packaged_documents
from crux.text.passages import passage_length, text_documents
from crux.text.paths import detect_format, find_data_files, split_suffixes
from crux.text.readers import json_lines

MAX_HASHED_BYTES = 256 << 20  # files that are larger in total are identified by name, size and modification time


class PackagedText(NamedTuple):
    """The packaged text; assets/text/heldout.txt lists its held-out documents."""

    sources: tuple[str, ...]
    """Names from `packaged.SOURCES`."""


class TextFiles(NamedTuple):
    """The user's own documents, as plain text, JSONL or Parquet: one file, or a folder of such files."""

    path: Path
    """File or folder."""
    column: str | None
    """The key or column with the text or the token ids; None: `text`, else `input_ids`."""


class HubDataset(NamedTuple):
    """A data set on the Hugging Face hub."""

    name: str
    """`owner/name`."""
    config: str | None
    """The data set's configuration (subset); None: its only or default one."""
    split: str
    """The split to read, usually `train`; it is divided into training and held-out documents."""
    revision: str | None
    """Commit or branch; None: main, as it was when its tokens were first cached."""
    column: str | None
    """The column with the text or the token ids; None: `text`, else `input_ids`."""


Source = PackagedText | TextFiles | HubDataset


class SourceDocument(NamedTuple):
    """One document of a source."""

    content: str | Integer[np.ndarray, "pos"]
    """The document's text, or its token ids if the source is already tokenised."""
    held_out: bool | None
    """True if the source's own list holds the document out, False if not; None: there is no list, and the hash of the content decides."""


def stream_documents(source: Source) -> Generator[SourceDocument, None, None]:
    """Yield the documents of a source that are not empty.

    Packaged documents are ordered by the hashes of their ids, so that every part of the stream mixes old and new speeches,
    scripture and novel. Other documents keep the order of their files or rows. A plain text file without end-of-text marks
    between documents is cut into passages, each of which is a document.

    Raises:
        UserError: for every error in the user's files or data set, each in one line.
    """
    match source:
        case PackagedText(sources):
            held_out = held_out_ids()
            for document in sorted((d for s in sources for d in packaged_documents(s)), key=_hash_id):
                yield SourceDocument(document.text, document.id in held_out)
        case TextFiles(path, column):
            paths = find_data_files(path)
            min_characters = passage_length(sum(f.stat().st_size for f in paths))
            for file in paths:
                contents = _read_file(file, column=column, min_characters=min_characters)
                yield from (SourceDocument(c, None) for c in contents if len(c))
        case HubDataset(name, config, split, revision, column):
            rows = hub_documents(name, config=config, split=split, revision=revision, column=column)
            yield from (SourceDocument(c, None) for c in rows if len(c))


def describe_source(source: Source) -> str:
    """Return a name of the source for messages."""
    match source:
        case PackagedText(sources):
            return f"the packaged text ({', '.join(sources)})"
        case TextFiles(path):
            return str(path)
        case HubDataset(name):
            return f"data set {name}"


def fingerprint_source(source: Source) -> dict[str, str | list[str] | None]:
    """Return values that identify the source's content, for the key of the cache.

    Packaged text: hashes of the assets. Files: hashes of their bytes, so that a moved or copied file is recognised; if
    they total more than 256 MiB, their paths, sizes and modification times. Hub data set: its fields.
    """
    match source:
        case PackagedText(sources):
            folder = files("crux.assets") / "text"
            names = [*(f"{s}.jsonl.xz" for s in sources), "heldout.txt"]
            return {"packaged": [hashlib.blake2b((folder / n).read_bytes()).hexdigest() for n in names]}
        case TextFiles(path, column):
            paths = find_data_files(path)
            hashed = sum(f.stat().st_size for f in paths) <= MAX_HASHED_BYTES
            return {"files": [_hash_file(f) if hashed else _describe_file(f) for f in paths], "column": column}
        case HubDataset():
            return {"hub": None, **source._asdict()}  # "hub" marks the kind of source, as "packaged" and "files" do


def _read_file(path: Path, *, column: str | None, min_characters: int) -> Iterator[str | Integer[np.ndarray, "pos"]]:
    match detect_format(path):
        case "text":
            yield from text_documents(path, length=min_characters)
        case "jsonl":
            for value in json_lines(path, column=column):
                yield value if isinstance(value, str) else np.array(value, np.int64)
        case "parquet":
            from crux.text.parquet import parquet_documents  # importing pyarrow is slow

            yield from parquet_documents(path, column=column)


def _hash_id(document: PackagedDocument) -> bytes:
    return hashlib.blake2b(document.id.encode(), digest_size=8).digest()


def _hash_file(path: Path) -> str:
    """Return the suffixes, which decide how a file is read, and the hash of its bytes."""
    with path.open("rb") as f:
        return "".join(split_suffixes(path)) + " " + hashlib.file_digest(f, "blake2b").hexdigest()


def _describe_file(path: Path) -> str:
    """Return path, size and modification time, which change if the file is edited."""
    stat = path.stat()
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
