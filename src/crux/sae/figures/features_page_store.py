"""The texts that the contexts of a page are places in: stored once, without the windows in which there is no context."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from crux.sae.figures.features_page_data import PageContexts
from crux.sae.figures.features_page_texts import Pieces


class TextStore(NamedTuple):
    """The windows of a text that have contexts."""

    pieces: Int[np.ndarray, "tokens"]
    """The piece of each token."""
    context: int
    """Number of tokens of a window."""


class PlacedContexts(NamedTuple):
    """Where the contexts of an SAE are."""

    store: int
    """Index of the store that holds them."""
    starts: Int[np.ndarray, "contexts"]
    """Number of each context's first token in the store."""


def store_texts(
    contexts: Sequence[PageContexts | None], pieces: Pieces
) -> tuple[list[TextStore], list[PlacedContexts | None]]:
    """Return the stores of the contexts of one or more SAEs, and for each SAE where its contexts are.

    SAEs whose contexts are in the same windows have one store.
    """
    stores: list[TextStore] = []
    placed: list[PlacedContexts | None] = [None] * len(contexts)
    for i, found in enumerate(contexts):
        if found is None or placed[i] is not None:
            continue
        same = [j for j in range(i, len(contexts)) if _have_same_windows(found, contexts[j])]
        width = found.windows.shape[1]
        used = np.unique(np.concatenate([c.starts // width for j in same if (c := contexts[j]) is not None]))
        place = np.full(len(found.windows), -1, np.int64)
        place[used] = np.arange(len(used))
        for j in same:
            if (other := contexts[j]) is not None:
                placed[j] = PlacedContexts(len(stores), place[other.starts // width] * width + other.starts % width)
        numbers = pieces.number_windows(found.windows[used]) if len(used) else np.zeros((0, width), np.int64)
        stores.append(TextStore(numbers.reshape(-1), width))
    return stores, placed


def _have_same_windows(contexts: PageContexts, other: PageContexts | None) -> bool:
    return other is not None and (other.windows is contexts.windows or np.array_equal(other.windows, contexts.windows))
