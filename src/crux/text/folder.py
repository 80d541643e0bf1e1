"""Find the files of a path that hold text, and those that only lie next to them.

This module imports only the standard library, so that an error is reported at once.
"""

import difflib
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from crux.config.errors import UserError
from crux.text.readers import COMPRESSIONS, find_compression, read_blocks, read_head
from crux.text.splits import choose_splits, recognise_split

Format = Literal["text", "jsonl", "csv", "parquet", "arrow"]

FORMATS: dict[str, Format] = {
    ".txt": "text", ".text": "text", ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl",
    ".jsonlines": "jsonl", ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".csv": "csv",
    ".tsv": "csv",
}  # fmt: skip
UNSUPPORTED_SUFFIXES = frozenset([
    ".7z", ".bin", ".doc", ".docx", ".epub", ".h5", ".hdf5", ".jpg", ".lz4", ".npy", ".npz",
    ".pdf", ".pickle", ".pkl", ".png", ".pt", ".pth", ".safetensors", ".tar", ".tbz2", ".tgz", ".txz", ".zip",
])  # fmt: skip
DESCRIPTIONS = frozenset([
    "config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json", "special_tokens_map.json",
    "tokenizer.json", "tokenizer_config.json",
])  # fmt: skip
"""Files that describe a data set; state.json too, next to a dataset_info.json."""
ABOUT = re.compile(
    r"(authors|changelog|citation|code_of_conduct|contributing|copying|licen[cs]es?|notice|readme|requirements)([-_. ].*)?",
    re.IGNORECASE,
)
"""Names of files about a data set."""

MIN_SIMILARITY = 0.75
"""Similarity (difflib's ratio) from which a name is suggested for a missing one; `tests` for `my_texts` has 0.62."""


class SkippedFile(NamedTuple):
    """A file or folder that is not read."""

    path: Path
    reason: str


class TextLayout(NamedTuple):
    """The files of a text, divided into sides if their owner has divided them."""

    train: list[Path]
    """Files to train on; if `held_out` is None, those of which a part is held out."""
    held_out: list[Path] | None
    """Files of the split that is held out; None: documents of `train` are held out by their hash."""
    splits: tuple[str | None, str | None]
    """Names of the splits that `train` and `held_out` are."""
    skipped: list[SkippedFile]
    """What lies in the folder and is not read."""

    @property
    def files(self) -> list[Path]:
        """All files that are read."""
        return [*self.train, *(self.held_out or [])]


def split_suffixes(path: Path) -> tuple[str, str]:
    """Return the suffixes for format and compression: `a.jsonl.gz` gives (".jsonl", ".gz")."""
    last = path.suffix.lower()
    return (Path(path.stem).suffix.lower(), last) if last in COMPRESSIONS else (last, "")


def detect_format(path: Path) -> Format:
    """Return a file's format by its name; a file with another suffix is Parquet, Arrow or JSONL by its first bytes, else text.

    Raises:
        UserError: if the suffix belongs to a format that is not supported.
    """
    suffix, packed = split_suffixes(path)
    format_ = FORMATS.get(suffix, "text")
    if suffix in UNSUPPORTED_SUFFIXES or (format_ in ("parquet", "arrow") and packed):
        raise UserError(
            f"{path}: {suffix + packed} files are not supported; give text (.txt), JSONL (.jsonl) or tables (.csv, .tsv), also as "
            f"{', '.join(COMPRESSIONS)}, or Parquet (.parquet), or a folder of Dataset.save_to_disk (.arrow)"
        )
    if suffix not in FORMATS and path.is_file():
        head = read_head(path)
        if find_compression(path):
            head = next(read_blocks(path), b"")
        if head.removeprefix(b"\xef\xbb\xbf").startswith(
            b'{"'
        ):  # part-00000 of a cluster; as text, its marks would be trained on
            return "jsonl"
        return "parquet" if head.startswith(b"PAR1") else "arrow" if head.startswith(b"ARROW1") else format_
    return format_


def find_text(path: Path, *, split: str | None, held_out_split: str | None) -> TextLayout:
    """Return the file itself, or the data files in a folder and its subfolders, sorted, in the splits that their names tell.

    In a folder these are the files with a suffix of `FORMATS`, also compressed, that are neither hidden nor about the
    data set. If there are none of these, all other text files are returned. Links are followed.

    Raises:
        UserError: if there is no such path, the folder has no data files, or a split does not exist.
    """
    path = _enter_snapshot(path.expanduser())
    if path.is_file():
        for key, value in (("data.split", split), ("data.held_out_split", held_out_split)):
            if value is not None:
                raise UserError(f"{key}={value} has no effect: {path} is one file; splits are files of a folder")
        return TextLayout([path], None, (None, None), [])
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path.absolute()} is a link to nothing")
    if not path.exists():
        names = os.listdir(path.parent) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=3, cutoff=MIN_SIMILARITY)
        raise UserError(
            f"no such file or folder: {path.absolute()}" + (f"; did you mean {', '.join(near)}?" if near else "")
        )
    skipped: list[SkippedFile] = []
    files = _choose_files(path, skipped)
    by_split: dict[str | None, list[Path]] = {}
    saved = _saved_splits(path)
    for file in files:
        inside = file.relative_to(path)
        name = inside.parts[0] if inside.parts[0] in saved else recognise_split(inside)
        by_split.setdefault(name, []).append(file)
    named = [name for name in by_split if name is not None]
    train, held_out = choose_splits(named, split=split, held_out_split=held_out_split, where=str(path))
    if train is None:
        return TextLayout(files, None, (None, None), skipped)
    for name, others in by_split.items():
        if name not in (train, held_out):
            reason = f"of the split {name}" if name is not None else "of no split"
            skipped += [SkippedFile(f, reason) for f in others]
    return TextLayout(by_split[train], by_split.get(held_out) if held_out else None, (train, held_out), skipped)


def _enter_snapshot(path: Path) -> Path:
    """Return the folder with the files, if the path is that of a data set in the hub's cache, which has the files of each revision.

    Raises:
        UserError: if it has several revisions, and does not say which one is `main`.
    """
    snapshots = path / "snapshots"
    if not (snapshots.is_dir() and (path / "blobs").is_dir()):
        return path
    revisions = sorted(p for p in snapshots.iterdir() if p.is_dir())
    with suppress(OSError, UnicodeDecodeError):
        main = snapshots / (path / "refs" / "main").read_text("utf-8").strip()
        if main in revisions:
            return main
    if len(revisions) == 1:
        return revisions[0]
    raise UserError(f"{snapshots} has {len(revisions)} revisions; give the path of one of them")


def _choose_files(path: Path, skipped: list[SkippedFile]) -> list[Path]:
    """Return the data files of a folder, sorted; add all others, with the reason, to `skipped`."""
    inside = sorted(_walk(path, {}, skipped))
    about = {f: reason for f in inside if (reason := _explain_description(f))}
    rest = [f for f in inside if f not in about]
    formats = {f: FORMATS.get(split_suffixes(f)[0]) for f in rest}
    files = [f for f in rest if formats[f] not in (None, "csv")]
    if not files:  # next to texts, a table is a list of them
        files = [f for f in rest if formats[f] is not None]
    if not files:
        files = [f for f in rest if split_suffixes(f)[0] not in UNSUPPORTED_SUFFIXES]
    if not files:
        kinds = ", ".join(sorted({f.suffix or f.name for f in inside})[:8]) or "nothing"
        raise UserError(f"no text, JSONL, CSV, Parquet or Arrow files in {path.absolute()} (it contains {kinds})")
    others = about | {f: "a table next to texts" for f, kind in formats.items() if kind == "csv"}
    skipped += [SkippedFile(f, others.get(f, "not a text file by its name")) for f in sorted({*inside} - {*files})]
    return files


def _walk(folder: Path, seen: dict[tuple[int, int], Path], skipped: list[SkippedFile]) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, each once, whatever links lead to it."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as e:
        raise UserError(f"{folder} cannot be read: {e.strerror}") from None
    seen.setdefault(_identify(folder), folder)
    # what is no link comes first, so that a link to it is the one that is skipped
    for entry in sorted(entries, key=lambda e: e.is_symlink()):
        if entry.name.startswith("."):
            skipped.append(SkippedFile(entry, "hidden"))
        elif not entry.exists():
            skipped.append(SkippedFile(entry, "a link to nothing"))
        elif (first := seen.setdefault(_identify(entry), entry)) is not entry:
            skipped.append(SkippedFile(entry, f"the same as {first}"))
        elif entry.is_dir():
            yield from _walk(entry, seen, skipped)
        elif entry.is_file():
            yield entry
        else:
            skipped.append(SkippedFile(entry, "not a regular file"))


def _identify(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _explain_description(file: Path) -> str | None:
    """Return why a file is about a data set rather than part of it, or None."""
    if file.name.lower() in DESCRIPTIONS or (
        file.name == "state.json" and (file.parent / "dataset_info.json").is_file()
    ):
        return "about the data set, by its name"
    if ABOUT.fullmatch(file.name):
        return "about the data set, by its name"
    if (
        file.suffix == ".arrow"
        and (file.parent / "state.json").is_file()
        and file.name not in _saved_files(file.parent)
    ):
        return "not among the files in state.json"
    return None


def _saved_splits(folder: Path) -> set[str]:
    """Return the names of the splits, each a folder, that `DatasetDict.save_to_disk` has written."""
    try:
        return set(json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"])
    except (OSError, ValueError, LookupError, TypeError):  # no or another program's dataset_dict.json
        return set()


def _saved_files(folder: Path) -> set[str]:
    """Return the names of the files that `Dataset.save_to_disk` has written, rather than a cache of `map`."""
    try:
        state = json.loads((folder / "state.json").read_text("utf-8"))
        return {entry["filename"] for entry in state["_data_files"]}
    except (OSError, ValueError, LookupError, TypeError):  # another program's state.json
        return {f.name for f in folder.glob("*.arrow")}
