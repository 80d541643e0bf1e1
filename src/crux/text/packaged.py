"""The packaged text: State of the Union addresses, Moby-Dick, the King James Bible, and what of them is held out."""

import json
import lzma
from collections.abc import Iterator
from importlib.resources import files
from typing import NamedTuple

SOURCES = ("sotu", "moby-dick", "kjv")


class Document(NamedTuple):
    id: str
    """`<source>/<name>`, as `sotu/1790_george_washington_n`."""
    text: str


def documents(source: str) -> Iterator[Document]:
    """The documents of one source, in the order of the year, book or chapter."""
    with (
        (files("crux.assets") / "text" / f"{source}.jsonl.xz").open("rb") as raw,
        lzma.open(raw, "rt", encoding="utf-8") as lines,
    ):
        for line in lines:
            yield Document(**json.loads(line))


def held_out_ids() -> frozenset[str]:
    """Ids of the documents that neither the packaged model nor any SAE trains on."""
    return frozenset((files("crux.assets") / "text" / "heldout.txt").read_text("utf-8").split())
