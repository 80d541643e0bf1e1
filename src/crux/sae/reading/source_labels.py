"""The source of each token of the packaged text, as labels for probes: addresses to Congress, Moby-Dick, or the King James Bible."""

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from crux.config.errors import UserError
from crux.sae.reading.harvest import ReadText
from crux.sae.reading.probing_labels import UNDEFINED
from crux.text.packaged import SOURCES, packaged_documents

N_COMPARED = 24
"""A document is recognised by so many tokens at its beginning, and by all of them if it has fewer."""

N_CHARACTERS = 400
"""Number of characters of each document that are encoded, which are more than `N_COMPARED` tokens."""


def label_packaged_sources(
    read: ReadText, stream: np.ndarray, *, tokenizer: Tokenizer, end_of_text: int
) -> dict[str, Int[np.ndarray, "tokens"]]:
    """Return a task for each source of the packaged text, to be given to `label_tokens`: 1 for its tokens, 0 for those of the others.

    Tokens of a document whose beginning two sources have, or none, are undefined.

    Args:
        stream: all tokens of the side of the text (training or held-out) from which `read` takes evenly spread windows.

    Raises:
        UserError: if these are not windows of the stream.
    """
    n_windows, context = read.windows.shape
    n_available = len(stream) // context
    starts = np.arange(n_windows) * n_available // n_windows * context  # as in `spread_batches`
    if len(stream) < starts[-1] + context or not all(
        np.array_equal(stream[start : start + context], window)
        for start, window in zip(starts, read.windows, strict=True)
    ):
        raise UserError("sources: the text that was read is not the packaged text that was given")
    beginnings: dict[bytes, int] = {}
    for number, source in enumerate(SOURCES):
        for document in packaged_documents(source):
            ids = tokenizer.encode(document.text[:N_CHARACTERS], add_special_tokens=False).ids
            key = _beginning(np.array([*ids, end_of_text]), end_of_text)
            beginnings[key] = number if beginnings.get(key, number) == number else UNDEFINED
    (ends,) = np.nonzero(stream == end_of_text)
    firsts = np.concatenate([[0], ends + 1])
    sources = np.array(
        [beginnings.get(_beginning(stream[f : f + N_COMPARED + 1], end_of_text), UNDEFINED) for f in firsts]
    )
    positions = starts[:, None] + np.arange(context)
    of_token = sources[
        np.searchsorted(ends, positions.ravel())
    ]  # an end-of-text token belongs to the document before it
    return {
        f"source_{source}": np.where(of_token == UNDEFINED, UNDEFINED, of_token == number).astype(np.int8)
        for number, source in enumerate(SOURCES)
    }


def _beginning(ids: np.ndarray, end_of_text: int) -> bytes:
    """Return the first tokens of a document as a key, up to its end."""
    (ends,) = np.nonzero(ids[:N_COMPARED] == end_of_text)
    return np.asarray(ids[: ends[0] if len(ends) else N_COMPARED], np.int64).tobytes()
