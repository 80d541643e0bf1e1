"""Recognise the splits that the owner of a folder has made by the names of its files and folders, as `datasets` does.

This module imports only the standard library, so that an error is reported at once.
"""

import re
from collections.abc import Collection
from pathlib import PurePath

from crux.config.errors import UserError

KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Names of each split; `datasets.data_files.SPLIT_KEYWORDS` has the same."""

_SEPARATORS = r"[-._ 0-9]"
_PATTERNS = {
    split: re.compile(rf"(^|{_SEPARATORS})({'|'.join(words)})($|{_SEPARATORS})", re.IGNORECASE)
    for split, words in KEYWORDS.items()
}
_SHARD = re.compile(r"([\w.]+)-\d{5}-of-\d{5}")  # of a data set on the hub: data/<split>-00000-of-00001.parquet


def canonical_split(name: str) -> str:
    """Return train, validation or test for each of their names; every other name unchanged."""
    return next((split for split, words in KEYWORDS.items() if name.lower() in words), name)


def recognise_split(path: PurePath) -> str | None:
    """Return the split that a file belongs to by its path within the folder, or None.

    The names of its folders take precedence over its own, the outermost first.
    """
    for part in path.parts:
        for split, pattern in _PATTERNS.items():
            if pattern.search(part):
                return split
    if len(path.parts) > 1 and path.parts[-2] == "data" and (shard := _SHARD.match(path.name)):
        return shard[1]
    return None


def choose_splits(
    available: Collection[str], *, split: str | None, held_out_split: str | None, where: str
) -> tuple[str | None, str | None]:
    """Return the names of the splits to train on and to hold out.

    (None, None): all the text is divided by hash. (name, None): that split is divided by hash. Without `split`, a text that
    has a training split and a validation or test split is divided as its owner divided it.

    Args:
        available: names of the splits that the text has.
        split: the value of data.split.
        held_out_split: the value of data.held_out_split.
        where: the text, for messages.

    Raises:
        UserError: if a split that was asked for does not exist, or if both are the same.
    """
    by_canonical = {canonical_split(name): name for name in reversed(list(available))}

    def find(key: str, name: str) -> str:
        if not available:
            raise UserError(f"{key}={name} has no effect: {where} has no splits")
        if name in available:
            return name
        if canonical_split(name) in by_canonical:
            return by_canonical[canonical_split(name)]
        raise UserError(f"{key}={name}: {where} has no such split; there are: {', '.join(available)}")

    held_out = find("data.held_out_split", held_out_split) if held_out_split is not None else None
    train = find("data.split", split) if split is not None else by_canonical.get("train")
    if held_out is None:
        names = [by_canonical[s] for s in ("validation", "test") if s in by_canonical and by_canonical[s] != train]
        held_out = names[0] if names and train is not None else None
    elif train is None:
        raise UserError(f"data.held_out_split={held_out_split}: {where} has no split train; choose one with data.split")
    if train is not None and train == held_out:
        raise UserError(f"data.split and data.held_out_split are both {train}: they must differ")
    if split is None and held_out is None:
        return None, None
    return train, held_out
