"""Short windows of a text in which a latent fires or is silent, and how they are shown to an LLM."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from crux.sae.reading.harvest import ReadText
from crux.subjects.token_texts import TokenText

OPEN, CLOSE = "<<", ">>"
"""Marks around highlighted tokens."""

N_QUANTILES = 5
"""Firing windows are drawn from as many groups of equal size, by the rank of their largest code."""

ROWS_KEPT = 512
"""Number of decoded windows of the network that are kept."""

Decode = Callable[[Sequence[int]], list[TokenText]]
"""Decodes the tokens of a window of the network: `TokenTexts` of the subject's tokenizer."""


class Span(NamedTuple):
    """Some neighbouring tokens within a window of the network."""

    row: int
    """Window of the network."""
    first: int
    """Position of the first token in it."""
    width: int
    """Number of tokens."""


class ShownText:
    """A text of which spans are shown to an LLM."""

    def __init__(self, read: ReadText, decode: Decode) -> None:
        self.read, self._decode = read, decode
        self.n_rows, self.context = read.windows.shape
        self._pieces: dict[int, list[str]] = {}

    def latent_codes(self, latents: Sequence[int]) -> Iterator[Float[np.ndarray, "rows context"]]:
        """Yield the codes of one latent after the other; those of the first token of each window, which is unlike all others, are 0."""
        columns = self.read.codes.matrix()[:, list(latents)].tocsc()
        for column in range(len(latents)):
            codes = np.zeros(self.read.n_tokens, np.float32)
            part = slice(columns.indptr[column], columns.indptr[column + 1])
            codes[columns.indices[part]] = columns.data[part]
            codes = codes.reshape(self.n_rows, self.context)
            codes[:, 0] = 0
            yield codes

    def grid(self, width: int) -> Bool[np.ndarray, "rows spans"]:
        """Return which of the spans of a grid are usable; span j of a row begins at token j · width.

        A span is usable if it lies within one text and does not contain the first token of the network's window.
        """
        per_row = self.context // width
        begins = self.read.begins.reshape(self.n_rows, self.context)[:, : per_row * width]
        crosses = begins.reshape(self.n_rows, per_row, width)[..., 1:].any(axis=2)
        return ~crosses & (np.arange(per_row) > 0)

    def show(self, span: Span, marked: Bool[np.ndarray, "width"] | None = None) -> str:
        """Return the text of a span, with marks around each run of marked tokens, and line breaks as ↵."""
        if span.row not in self._pieces:
            if len(self._pieces) >= ROWS_KEPT:
                self._pieces.clear()
            self._pieces[span.row] = [piece.text for piece in self._decode(self.read.windows[span.row].tolist())]
        pieces = self._pieces[span.row][span.first : span.first + span.width]
        shown = []
        for i, piece in enumerate(pieces):
            on = marked is not None and bool(marked[i])
            was_on = marked is not None and i > 0 and bool(marked[i - 1])
            stays_on = marked is not None and i + 1 < len(pieces) and bool(marked[i + 1])
            shown.append((OPEN if on and not was_on else "") + piece + (CLOSE if on and not stays_on else ""))
        return "".join(shown).replace("\n", "↵")


def span_codes(codes: Float[np.ndarray, "rows context"], span: Span) -> Float[np.ndarray, "width"]:
    """Return the codes of a latent on a span."""
    return codes[span.row, span.first : span.first + span.width]


def grid_peaks(codes: Float[np.ndarray, "rows context"], width: int) -> Float[np.ndarray, "rows spans"]:
    """Return the largest code on each span of the grid."""
    per_row = codes.shape[1] // width
    return codes[:, : per_row * width].reshape(len(codes), per_row, width).max(-1)


def choose_activating(
    peaks: Float[np.ndarray, "rows spans"],
    usable: Bool[np.ndarray, "rows spans"],
    *,
    n_top: int,
    per_quantile: int,
    width: int,
    rng: np.random.Generator,
) -> list[Span]:
    """Return the spans with the largest codes, strongest first, and then `per_quantile` others from each fifth of those that fire.

    The fifths are of the rank of the peak, not of its value. If fewer spans fire, all are returned.
    """
    found = np.flatnonzero(usable & (peaks > 0))
    order = found[np.argsort(-peaks.ravel()[found], kind="stable")]
    top, rest = order[:n_top], order[n_top:]
    groups = np.array_split(rest, N_QUANTILES)
    drawn = [np.sort(rng.choice(group, min(per_quantile, len(group)), replace=False)) for group in groups]
    return _to_spans(np.concatenate([top, *drawn]), peaks.shape[1], width)


def choose_silent(
    peaks: Float[np.ndarray, "rows spans"],
    usable: Bool[np.ndarray, "rows spans"],
    *,
    n: int,
    width: int,
    rng: np.random.Generator,
) -> list[Span]:
    """Return n random spans on which the latent is silent at every token; fewer if there are fewer."""
    found = np.flatnonzero(usable & (peaks == 0))
    return _to_spans(rng.choice(found, min(n, len(found)), replace=False), peaks.shape[1], width)


def contains_token(
    windows: Int[np.ndarray, "rows context"], token: int, *, width: int
) -> Bool[np.ndarray, "rows spans"]:
    """Return which spans of the grid contain a token."""
    per_row = windows.shape[1] // width
    return (windows[:, : per_row * width].reshape(len(windows), per_row, width) == token).any(-1)


def strongest_token(windows: Int[np.ndarray, "rows context"], codes: Float[np.ndarray, "rows context"]) -> int:
    """Return the token on which the sum of a latent's codes is largest."""
    return int(np.bincount(windows.ravel(), codes.ravel()).argmax())


def choose_latents(
    fit_firings: Int[np.ndarray, "n_latents"],
    held_out_firings: Int[np.ndarray, "n_latents"],
    *,
    n: int,
    min_firings: int,
) -> Int[np.ndarray, "chosen"]:
    """Return up to n latents, evenly spaced in the order of density among those with enough firings on both sides.

    Latents that were chosen because they look good would say nothing about the others.
    """
    (usable,) = np.nonzero(np.minimum(fit_firings, held_out_firings) >= min_firings)
    by_density = usable[np.argsort(-fit_firings[usable], kind="stable")]
    if len(by_density) <= n:
        return by_density
    return by_density[np.linspace(0, len(by_density) - 1, n).round().astype(np.int64)]


def _to_spans(indices: Int[np.ndarray, "n"], per_row: int, width: int) -> list[Span]:
    return [Span(int(i) // per_row, int(i) % per_row * width, width) for i in indices]
