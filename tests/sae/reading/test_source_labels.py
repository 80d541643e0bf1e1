"""The sources of tokens of the packaged text."""

import numpy as np
import pytest

from crux.config.errors import UserError
from crux.sae.reading.harvest import ReadText, find_text_begins
from crux.sae.reading.source_labels import label_packaged_sources
from crux.sae.reading.sparse_codes import SparseCodes
from crux.subjects.tokenizer import load_tokenizer
from crux.text.packaged import SOURCES, packaged_documents


def test_each_token_has_the_source_of_its_document() -> None:
    tokenizer, end = load_tokenizer("tiny")
    documents = [(source, list(packaged_documents(source))[i]) for i in (3, 7) for source in reversed(SOURCES)]
    rows, truth = [], []
    for source, document in documents:
        ids = [*tokenizer.encode(document.text[:3000], add_special_tokens=False).ids, end]
        rows += ids
        truth += [SOURCES.index(source)] * len(ids)
    stranger = [*tokenizer.encode("A text that is in no source.", add_special_tokens=False).ids, end]
    stream, sources = np.array([*rows, *stranger, *stranger], np.uint16), np.array(truth + [-1] * 2 * len(stranger))
    context, n_windows = 8, len(stream) // 8 // 2
    starts = np.arange(n_windows) * (len(stream) // context) // n_windows * context
    windows = np.stack([stream[s : s + context] for s in starts]).astype(np.int64)
    nothing = SparseCodes(np.zeros(windows.size + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), 1)
    read = ReadText(windows, find_text_begins(windows, end), nothing, None)
    labels = label_packaged_sources(read, stream, tokenizer=tokenizer, end_of_text=end)
    expected = np.concatenate([sources[s : s + context] for s in starts])
    assert set(expected.tolist()) == {-1, 0, 1, 2}
    for number, source in enumerate(SOURCES):
        found = labels[f"source_{source}"]
        np.testing.assert_array_equal(found, np.where(expected == -1, -1, expected == number))
    with pytest.raises(UserError, match="not the packaged text that was given"):
        label_packaged_sources(read, stream[1:], tokenizer=tokenizer, end_of_text=end)
