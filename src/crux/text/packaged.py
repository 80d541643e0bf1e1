"""The packaged text: State of the Union addresses, Moby-Dick and the King James Bible, and the list of held-out documents."""

import json
import lzma
from collections.abc import Iterator
from importlib.resources import files
from typing import NamedTuple

SOURCES = ("sotu", "moby-dick", "kjv")


class PackagedDocument(NamedTuple):
    """One document of the packaged text."""

    id: str
    """`<source>/<name>`, such as `sotu/1790_george_washington_n`."""
    text: str


def packaged_documents(source: str) -> Iterator[PackagedDocument]:
    """Yield the documents of one source, ordered by year, book or chapter."""
    with (
        (files("crux.assets") / "text" / f"{source}.jsonl.xz").open("rb") as raw,
        lzma.open(raw, "rt", encoding="utf-8") as lines,
    ):
        for line in lines:
            yield PackagedDocument(**json.loads(line))


def held_out_ids() -> frozenset[str]:
    """Return the ids of the documents on which neither the packaged model nor any SAE trains."""
    return frozenset((files("crux.assets") / "text" / "heldout.txt").read_text("utf-8").split())
