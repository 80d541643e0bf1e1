"""The packaged text and its held-out documents."""

from pathlib import Path

import crux.assets
from crux.text.packaged import SOURCES, held_out_ids, packaged_documents

HELD_OUT_LIST = Path(crux.assets.__file__).parent / "text" / "heldout.txt"


def test_held_out_is_every_tenth_document_of_each_source_and_the_committed_list():
    ids = {s: [d.id for d in packaged_documents(s)] for s in SOURCES}
    tenth = [i for s in SOURCES for i in ids[s][9::10]]
    assert HELD_OUT_LIST.read_text().splitlines() == tenth
    assert held_out_ids() == set(tenth)
    assert {s: len(i) for s, i in ids.items()} == {"sotu": 233, "moby-dick": 138, "kjv": 1189}
    assert ids["sotu"] == sorted(ids["sotu"])  # by year, so that every tenth covers 1790 to today
    assert all(i.startswith(f"{s}/") for s in SOURCES for i in ids[s])


def test_no_two_documents_are_equal():
    texts = [d.text for s in SOURCES for d in packaged_documents(s)]
    assert len(set(texts)) == len(texts)
    assert sum(len(t.encode()) for t in texts) > 10_000_000
