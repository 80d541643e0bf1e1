"""Sources of text as streams of documents: the packaged text, the user's files, or a data set on the hub."""

import hashlib
from collections.abc import Generator, Iterator
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

from crux.config.errors import UserError
from crux.text.cells import Row
from crux.text.csv_rows import csv_rows, find_delimiter
from crux.text.demand import Demand
from crux.text.folder import TextLayout, detect_format, find_text, split_suffixes
from crux.text.hub import hub_rows
from crux.text.packaged import PackagedDocument, held_out_ids, packaged_documents
from crux.text.passages import has_separators, passage_length, text_documents
from crux.text.readers import json_rows, read_blocks
from crux.text.tally import Tally

MAX_HASHED_BYTES = 256 << 20  # files that are larger in total are identified by name, size and modification time
WHOLE_FILES = 20  # from so many text files on, whole files rather than their passages are held out
LARGEST_SHARE = 0.25  # unless one of them is more than this share of the text, which could then be held out as a whole
HASHED_CHARACTERS = 1 << 20  # a text is hashed in parts of this length, so that a long one is not copied


class PackagedText(NamedTuple):
    """The packaged text; assets/text/heldout.txt lists its held-out documents."""

    sources: tuple[str, ...]
    """Names from `packaged.SOURCES`."""


class TextFiles(NamedTuple):
    """The user's own documents, as plain text, JSONL, CSV, Parquet or Arrow: one file, or a folder of such files."""

    path: Path
    """File or folder."""
    column: str | None
    """The key or column with the text or the token ids; None: `text`, else `input_ids`."""
    split: str | None = None
    """The split to train on; None: `train` if the folder's files name splits, else all files."""
    held_out_split: str | None = None
    """The split to hold out; None: the folder's validation or test split, else documents chosen by their hash."""


class HubDataset(NamedTuple):
    """A data set on the Hugging Face hub."""

    name: str
    """`owner/name`."""
    config: str | None
    """The data set's configuration (subset); None: its only or default one."""
    split: str
    """The split to train on, usually `train`."""
    revision: str | None
    """Commit or branch; None: main, as it was when its tokens were first cached."""
    column: str | None
    """The column with the text or the token ids; None: `text`, else `input_ids`."""
    held_out_split: str | None = None
    """The split to hold out; None: the data set's validation or test split, else documents of `split` chosen by their hash."""


Source = PackagedText | TextFiles | HubDataset


class SourceDocument(NamedTuple):
    """One document of a source."""

    content: str | Integer[np.ndarray, "pos"]
    """The document's text, or its token ids if the source is already tokenised."""
    held_out: bool | None
    """True if the source's owner holds the document out, False if not; None: the hash decides."""
    file: int = 0
    """Index of its file in `SourceDescription.files`."""
    number: int = 0
    """Its row or line in the file from 1, or the number of the passage."""
    unit: bytes | None = None
    """Hash of what is never divided between the sides, if that is more than the document: its file."""


class SourceDescription(NamedTuple):
    """What is known of a source before its documents are read."""

    files: list[str]
    """Names of its files."""
    division: str
    """How training text and held-out text are divided, for the report; `{every}` stands for the number."""
    skipped: dict[str, list[str]]
    """Files that are not read, by reason."""
    whole_files: bool
    """True if whole files are held out."""
    divided: bool
    """True if the source's owner has divided it; of a data set on the hub this is not known before it is opened."""


def describe_files(source: Source) -> SourceDescription:
    """Return the files of a source and how they are divided.

    Raises:
        UserError: if there is no such path or split.
    """
    by_hash = "one {unit} in {every} is held out, by the hash of its content"
    match source:
        case PackagedText(sources):
            return SourceDescription(list(sources), "by the list of held-out documents", {}, False, True)
        case TextFiles():
            layout = _find_files(source)
            skipped: dict[str, list[str]] = {}
            for path, reason in layout.skipped:
                skipped.setdefault(reason, []).append(str(path))
            whole, unit = _holds_out_whole_files(layout), "document"
            if {detect_format(f) for f in layout.train} == {"text"}:
                unit = "file" if whole else "passage or document"
            division = by_hash.replace("{unit}", unit)
            if layout.held_out is not None:
                division = "by the text's own splits: {} to train on, {} held out".format(*layout.splits)
            return SourceDescription(
                [str(f) for f in layout.files], division, skipped, whole, layout.held_out is not None
            )
        case HubDataset(name):
            return SourceDescription([name], by_hash.replace("{unit}", "document"), {}, False, False)


def stream_documents(source: Source, tally: Tally, demand: Demand) -> Generator[SourceDocument, None, None]:
    """Yield the documents of a source that are not empty.

    Packaged documents are ordered by the hashes of their ids, so that every part of the stream mixes old and new speeches,
    scripture and novel. Other documents keep the order of their files or rows. A plain text file without end-of-text marks
    between documents is cut into passages, each of which is a document.

    Args:
        tally: counts the rows that are skipped or changed.
        demand: what is still needed; only a data set on the hub, whose size is unknown, ends by it.

    Raises:
        UserError: for every error in the user's files or data set, each in one line.
    """
    match source:
        case PackagedText(sources):
            held_out = held_out_ids()
            for document in sorted((d for s in sources for d in packaged_documents(s)), key=_hash_id):
                yield SourceDocument(document.text, document.id in held_out, sources.index(document.id.split("/")[0]))
        case TextFiles():
            yield from _file_documents(source, tally)
        case HubDataset():
            for row, held_out in hub_rows(*source, demand=demand):
                if (content := _use_row(row, tally, f"data set {source.name}, row {row.number}")) is not None:
                    yield SourceDocument(content, held_out, 0, row.number)


def _file_documents(source: TextFiles, tally: Tally) -> Iterator[SourceDocument]:
    """Yield the documents of the user's files."""
    layout = _find_files(source)
    length = passage_length(sum(f.stat().st_size for f in layout.files))
    whole_files = _holds_out_whole_files(layout)
    for index, path in enumerate(layout.files):
        held_out = None if layout.held_out is None else index >= len(layout.train)
        kind = detect_format(path)
        if kind == "text":
            unit = _hash_content(path) if whole_files and not has_separators(path) else None
            for number, text in enumerate(text_documents(path, length=length), start=1):
                yield SourceDocument(text, held_out, index, number, unit)
            continue
        if kind == "jsonl":
            rows = json_rows(path, column=source.column)
        elif kind == "csv":
            rows = csv_rows(path, column=source.column, delimiter=find_delimiter(path))
        else:
            from crux.text.arrow import arrow_rows  # importing pyarrow is slow

            rows = arrow_rows(path, column=source.column, kind=kind)
        for row in rows:
            if (content := _use_row(row, tally, f"{path}, row {row.number}")) is not None:
                yield SourceDocument(content, held_out, index, row.number)


def _use_row(row: Row, tally: Tally, where: str) -> str | Integer[np.ndarray, "pos"] | None:
    """Return the content of a row, or None and count it if it has none."""
    if row.content is None:
        tally.skip("null", where=where)
        return None
    if len(row.content) == 0:
        tally.skip("empty", where=where)
        return None
    if row.repaired:
        tally.change("half of a surrogate pair replaced by U+FFFD", where=where)
    if isinstance(row.content, str):
        return row.content
    try:
        return np.asarray(row.content, np.int64)
    except OverflowError:
        raise UserError(f"{where}: a token id of more than 64 bits") from None


def _find_files(source: TextFiles) -> TextLayout:
    return find_text(source.path, split=source.split, held_out_split=source.held_out_split)


def _holds_out_whole_files(layout: TextLayout) -> bool:
    """Return True if there are so many text files, none of them a large part, that whole ones are held out, rather than passages of all."""
    if layout.held_out is not None or len(layout.train) < WHOLE_FILES:
        return False
    sizes = [f.stat().st_size for f in layout.train]
    if max(sizes) > LARGEST_SHARE * sum(sizes):
        return False
    return sum(detect_format(f) == "text" for f in layout.train) >= WHOLE_FILES


def hash_document(content: str | Integer[np.ndarray, "pos"]) -> bytes:
    """Return the hash of a document's content, 8 bytes."""
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(content, str):
        for start in range(0, len(content), HASHED_CHARACTERS):
            digest.update(content[start : start + HASHED_CHARACTERS].encode())
    else:
        digest.update(content.astype("<i8").tobytes())
    return digest.digest()


def describe_source(source: Source) -> str:
    """Return a name of the source for messages."""
    match source:
        case PackagedText(sources):
            return f"the packaged text ({', '.join(sources)})"
        case TextFiles(path):
            return str(path)
        case HubDataset(name):
            return f"data set {name}"


def describe_place(source: Source, document: SourceDocument) -> str:
    """Return the file and the row of a document for messages."""
    match source:
        case TextFiles():
            path = _find_files(source).files[document.file]
            kind = detect_format(path)
            return (
                f"{path}:{document.number}"
                if kind == "jsonl"
                else f"{path}, {'passage' if kind == 'text' else 'row'} {document.number}"
            )
        case HubDataset():
            return f"{describe_source(source)}, row {document.number}"
        case PackagedText():
            return describe_source(source)


def fingerprint_source(source: Source) -> dict[str, object]:
    """Return values that identify the source's content, for the key of the cache.

    Packaged text: hashes of the assets. Files: hashes of their bytes, so that a moved or copied file is recognised; if
    they total more than 256 MiB, their paths, sizes and modification times. Hub data set: its fields.
    """
    match source:
        case PackagedText(sources):
            folder = files("crux.assets") / "text"
            names = [*(f"{s}.jsonl.xz" for s in sources), "heldout.txt"]
            return {"packaged": [hashlib.blake2b((folder / n).read_bytes()).hexdigest() for n in names]}
        case TextFiles(column=column):
            layout = _find_files(source)
            hashed = sum(f.stat().st_size for f in layout.files) <= MAX_HASHED_BYTES
            n_train = len(layout.train) if layout.held_out is not None else None
            contents = [_hash_file(f) if hashed else _describe_file(f) for f in layout.files]
            return {"files": contents, "held_out_from": n_train, "column": column}
        case HubDataset():
            return {"hub": None, **source._asdict()}  # "hub" marks the kind of source, as "packaged" and "files" do


def _hash_id(document: PackagedDocument) -> bytes:
    return hashlib.blake2b(document.id.encode(), digest_size=8).digest()


def _hash_file(path: Path) -> str:
    """Return the suffixes, which decide how a file is read, and the hash of its bytes."""
    with path.open("rb") as f:
        return "".join(split_suffixes(path)) + " " + hashlib.file_digest(f, "blake2b").hexdigest()


def _hash_content(path: Path) -> bytes:
    """Return the hash of a file's decompressed bytes, 8 bytes."""
    digest = hashlib.blake2b(digest_size=8)
    for block in read_blocks(path):
        digest.update(block)
    return digest.digest()


def _describe_file(path: Path) -> str:
    """Return path, size and modification time, which change if the file is edited."""
    stat = path.stat()
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
