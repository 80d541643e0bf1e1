"""Contexts of all latents in a text: where each fires most, at every level of its code, and at random.

The strongest contexts alone are an illusion of what a latent does, since most of its firings are weaker. So there are, next to them,
contexts from groups of equal size of the tokens on which it fires, by the rank of their codes (not by equal intervals of the code, of
which the lowest would hold nearly all tokens), and contexts drawn from all tokens on which it fires.
"""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from crux.config.progress import track
from crux.sae.figures.features_page_data import PageContexts
from crux.sae.reading.harvest import ReadText

LATENTS_PER_BLOCK = 2048

GRAM = 8
"""Two contexts are the same if the last 8 tokens up to their peaks are."""

_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, near 2^64 divided by the golden ratio: spreads the bits of token ids


class ContextCounts(NamedTuple):
    """Number of contexts of a latent, at most."""

    top: int
    """With the largest codes."""
    quantiles: int
    """Number of groups of equal size, by the rank of the code among the tokens on which the latent fires."""
    per_quantile: int
    """From each group, drawn at random."""
    random: int
    """Drawn from all tokens on which the latent fires."""


BEFORE_PEAK, AFTER_PEAK = 15, 8
"""Tokens of a context before and after its peak."""


def find_contexts(
    text: ReadText,
    latents: Int[np.ndarray, "rows"],
    *,
    counts: ContextCounts,
    joined: Bool[np.ndarray, "tokens"] | None = None,
    before: int = BEFORE_PEAK,
    after: int = AFTER_PEAK,
    seed: int = 0,
) -> PageContexts:
    """Return contexts of latents in a text, which should be the held-out side of a harvest.

    A context is the tokens around its peak, within one window, and is extended at both ends until its characters are whole. Within a group
    of contexts there is at most one per window and one per sequence of 8 tokens up to the peak: the one that comes first, with the largest
    code in the top group and at random in the others. If a latent fires on no more tokens than the top group shows, it has only that group.

    Memory holds the codes of 2,048 latents at a time. The result depends neither on the blocks nor on the other latents.

    Args:
        latents: indices in the dictionary, in any order.
        joined: token by token, whether a character has a part in the token before and a part in this one; None: each token is whole.
        seed: of the contexts drawn at random; each latent has its own generator.
    """
    context = text.windows.shape[1]
    hashes = hash_grams(text.windows)
    found = [_ChosenPeaks([], [])] * len(latents)
    maxima = np.zeros(len(latents))
    nothing = np.zeros(0, np.int64)
    codes_of_rows: list[np.ndarray] = [np.zeros(0, np.uint8)] * len(latents)
    places: list[tuple[np.ndarray, np.ndarray]] = [(nothing, nothing)] * len(latents)
    scratch = np.zeros(text.n_tokens)
    order = np.argsort(latents, kind="stable")
    blocks = range(0, text.codes.n_latents, LATENTS_PER_BLOCK)
    for first in track(blocks, "choosing contexts") if len(blocks) > 1 else blocks:
        last = min(first + LATENTS_PER_BLOCK, text.codes.n_latents)
        rows = order[np.searchsorted(latents[order], first) : np.searchsorted(latents[order], last)]
        if not len(rows):
            continue
        block = text.codes.by_latent(first, last)
        for row in rows.tolist():
            column = int(latents[row]) - first
            begin, end = block.indptr[column : column + 2]
            tokens, codes = block.indices[begin:end].astype(np.int64), block.data[begin:end]
            if not len(tokens):
                continue
            generator = np.random.default_rng([seed, int(latents[row])])
            found[row] = _choose_peaks(tokens, codes, hashes, context=context, counts=counts, generator=generator)
            places[row] = extend_contexts(found[row].tokens, context=context, before=before, after=after, joined=joined)
            maximum = maxima[row] = float(codes.max())
            scratch[tokens] = codes
            inside = scratch[spread_ranges(*places[row])]
            codes_of_rows[row] = quantise(inside, maximum)
            scratch[tokens] = 0
    starts = np.concatenate([nothing, *(place[0] for place in places)])
    lengths = np.concatenate([nothing, *(place[1] for place in places)])
    peaks = np.array([token for chosen in found for token in chosen.tokens], np.int64)
    return PageContexts(
        windows=text.windows,
        offsets=np.concatenate([[0], np.cumsum([len(chosen.tokens) for chosen in found])]).astype(np.int64),
        groups=np.array([group for chosen in found for group in chosen.groups], np.int64),
        starts=starts,
        lengths=lengths,
        peaks=peaks - starts,
        codes=np.concatenate([*codes_of_rows, np.zeros(0, np.uint8)]),
        maxima=maxima,
        group_names=_name_groups(counts),
    )


def quantise(codes: np.ndarray, maximum: float) -> UInt8[np.ndarray, "codes"]:
    """Return codes in units of 1/255 of the maximum; what is above zero stays at least 1."""
    return np.maximum(np.rint(255 * codes / maximum), codes > 0).astype(np.uint8)


def count_codes(text: ReadText, latents: Int[np.ndarray, "rows"], *, bins: int) -> Int[np.ndarray, "rows bins"]:
    """Return the number of tokens in equal bins of the code from 0 to each latent's maximum, without silent tokens.

    A code on the border of two bins is in the higher one; the maximum is in the last.
    """
    maxima = np.zeros(text.codes.n_latents)
    np.maximum.at(maxima, text.codes.latents, text.codes.values)
    counts = np.zeros(text.codes.n_latents * bins, np.int64)
    chunk = 1 << 22
    for first in range(0, len(text.codes.values), chunk):
        owners = np.asarray(text.codes.latents[first : first + chunk])
        values = np.asarray(text.codes.values[first : first + chunk], np.float64)
        places = np.minimum((bins * values / maxima[owners]).astype(np.int64), bins - 1)
        counts += np.bincount(owners * bins + places, minlength=len(counts))
    return counts.reshape(-1, bins)[latents]


def hash_grams(windows: Int[np.ndarray, "windows context"]) -> np.ndarray:
    """Return, token by token, a hash of the last 8 tokens of its window up to itself."""
    mixed = (windows.astype(np.uint64) + np.uint64(1)) * _FACTOR
    mixed ^= mixed >> np.uint64(29)
    hashes = mixed.copy()
    for back in range(1, min(GRAM, windows.shape[1])):
        power = np.uint64(pow(int(_FACTOR), back + 1, 1 << 64))
        hashes[:, back:] += mixed[:, :-back] * power
    return hashes.reshape(-1)


class _ChosenPeaks(NamedTuple):
    """The peaks of the contexts of one latent, group by group."""

    groups: list[int]
    tokens: list[int]


def _choose_peaks(
    tokens: np.ndarray,
    codes: np.ndarray,
    hashes: np.ndarray,
    *,
    context: int,
    counts: ContextCounts,
    generator: np.random.Generator,
) -> _ChosenPeaks:
    ranked = tokens[np.argsort(-codes, kind="stable")]  # by code, then by place
    top = drop_duplicates(ranked, np.arange(len(ranked)), hashes, context=context, n=counts.top)
    groups, places = [0] * len(top), top.tolist()
    if len(tokens) > counts.top:
        edges = [(len(ranked) * i) // counts.quantiles for i in range(counts.quantiles + 1)] if counts.quantiles else []
        drawn_from = [(first, last, counts.per_quantile) for first, last in itertools.pairwise(edges)]
        for group, (first, last, n) in enumerate([*drawn_from, (0, len(ranked), counts.random)]):
            candidates = first + generator.permutation(last - first)
            drawn = drop_duplicates(ranked, candidates, hashes, context=context, n=n)
            groups += [group + 1] * len(drawn)
            places += sorted(drawn.tolist())  # by decreasing code
    return _ChosenPeaks(groups, ranked[places].tolist())


def drop_duplicates(tokens: np.ndarray, places: np.ndarray, hashes: np.ndarray, *, context: int, n: int) -> np.ndarray:
    """Return the first n places in `tokens` that are the first ones of their windows and, of those, the first ones with their hash.

    The first places of the answer depend on the first ones of the list alone, so a part of it is enough most of the time.
    """
    size = 8 * n
    while True:
        part = places[:size]
        for key_of in (lambda tokens: tokens // context, hashes.__getitem__):
            _, first = np.unique(key_of(tokens[part]), return_index=True)
            part = part[np.sort(first)]
        if len(part) >= n or size >= len(places):
            return part[:n]
        size *= 8


def extend_contexts(
    peaks: list[int], *, context: int, before: int, after: int, joined: Bool[np.ndarray, "tokens"] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first tokens and the lengths of the contexts around some peaks."""
    peak = np.array(peaks, np.int64)
    window = peak - peak % context
    start, end = np.maximum(peak - before, window), np.minimum(peak + after + 1, window + context)
    if joined is not None:
        while (move := joined[start] & (start > window)).any():
            start = start - move
        while (move := (end < window + context) & joined[np.minimum(end, len(joined) - 1)]).any():
            end = end + move
    return start, end - start


def spread_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the numbers of all tokens of some ranges, one range after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def _name_groups(counts: ContextCounts) -> tuple[str, ...]:
    share = 100 / counts.quantiles if counts.quantiles else 0
    quantiles = [
        f"codes of rank {share * i:.0f} to {share * (i + 1):.0f} %{', the largest' if i == 0 else ''}"
        for i in range(counts.quantiles)
    ]
    return ("strongest", *quantiles, "random firing tokens")
