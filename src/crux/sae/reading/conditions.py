"""Conditions on a token and those before it in its text: what a rule tests."""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Int

from crux.sae.reading.sparse_matrices import make_indicator, size_of
from crux.sae.reading.token_classes import TokenClasses

DEPTH = 3
"""Largest number of tokens in a suffix."""


TOKENS_PER_BLOCK = 1 << 17
"""Tokens for which a matrix of matches is built at once."""


class Kind(IntEnum):
    """The kinds of conditions."""

    SUFFIX = 0
    """The last tokens are these."""
    WITHIN = 1
    """A token is among the last 8 or 32 tokens, the current one included."""
    CLASS = 2
    """The current token, or the one before, is in a class."""
    START = 3
    """The token is the first of its text."""
    BOTH = 4
    """Two other conditions hold."""


class Conditions(NamedTuple):
    """Distinct conditions. A text does not reach back beyond its first token, so nothing before that token is ever tested."""

    kinds: Int[np.ndarray, "conditions"]
    """The `Kind` of each condition."""
    parts: Int[np.ndarray, "conditions 3"]
    """SUFFIX: the tokens, the current one first, −1 behind the last. WITHIN: the token and the number of tokens. CLASS: the class, and 0
    for the current token or 1 for the one before. BOTH: the numbers of two conditions before this one. Unused places are −1."""

    def matches(
        self, windows: Int[np.ndarray, "windows context"], begins: Bool[np.ndarray, "tokens"], classes: TokenClasses
    ) -> scipy.sparse.csr_matrix:
        """Return which conditions hold at each token, as a matrix of ones, tokens × conditions, with ascending columns."""
        tokens = windows.reshape(-1)
        age = token_ages(begins)
        found = [
            self._match_suffixes(tokens, age, len(classes.members)),
            *(self._match_within(tokens, age, span, len(classes.members)) for span in self._spans()),
            self._match_classes(tokens, age, classes),
            _pairs(np.flatnonzero(age == 0), np.flatnonzero(self.kinds == Kind.START)),
        ]
        single = _indicator(found, (len(tokens), len(self.kinds)))
        both = np.flatnonzero(self.kinds == Kind.BOTH)
        if not len(both):
            return single
        rows, columns = _intersect(single, self.parts[both, 0], self.parts[both, 1])
        entries = single.tocoo()
        return _indicator([(entries.row, entries.col), (rows, both[columns])], size_of(single))

    def _spans(self) -> list[int]:
        return np.unique(self.parts[self.kinds == Kind.WITHIN, 1]).tolist()

    def _match_suffixes(self, tokens: np.ndarray, age: np.ndarray, vocab: int) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.flatnonzero(self.kinds == Kind.SUFFIX)
        depths = (self.parts[numbers] >= 0).sum(1)
        rows, columns = [], []
        for depth in range(1, DEPTH + 1):
            chosen = numbers[depths == depth]
            keys = pack_tokens(list(self.parts[chosen, :depth].T), vocab)
            order = np.argsort(keys)
            here = pack_suffixes(tokens, age, depth, vocab)
            place = find_sorted(keys[order], here)
            rows.append(np.flatnonzero(place >= 0))
            columns.append(chosen[order][place[place >= 0]])
        return np.concatenate(rows), np.concatenate(columns)

    def _match_within(
        self, tokens: np.ndarray, age: np.ndarray, span: int, vocab: int
    ) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.flatnonzero((self.kinds == Kind.WITHIN) & (self.parts[:, 1] == span))
        column_of = np.full(vocab, -1, np.int32)
        column_of[self.parts[numbers, 0]] = numbers
        of_token = column_of[tokens]
        rows, columns = [], []
        for lag in range(min(span, len(tokens))):
            # a token that occurs again between is found at the smaller distance already; duplicates are merged later
            held = np.flatnonzero((of_token[: len(tokens) - lag] >= 0) & (age[lag:] >= lag))
            rows.append((held + lag).astype(np.int32))
            columns.append(of_token[held])
        return np.concatenate(rows), np.concatenate(columns)

    def _match_classes(
        self, tokens: np.ndarray, age: np.ndarray, classes: TokenClasses
    ) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for number in np.flatnonzero(self.kinds == Kind.CLASS):
            member, lag = classes.members[:, self.parts[number, 0]], self.parts[number, 1]
            held = np.flatnonzero(member[tokens[: len(tokens) - lag]] & (age[lag:] >= lag)) + lag
            rows.append(held)
            columns.append(np.full(len(held), number))
        return np.concatenate(rows), np.concatenate(columns)


def match_text(
    conditions: Conditions,
    windows: Int[np.ndarray, "windows context"],
    begins: Bool[np.ndarray, "tokens"],
    classes: TokenClasses,
) -> scipy.sparse.csr_matrix:
    """Return `conditions.matches` of a long text, built in blocks of windows to save memory."""
    context = windows.shape[1]
    block = max(1, TOKENS_PER_BLOCK // context)
    parts = [
        conditions.matches(windows[first : first + block], begins[first * context : (first + block) * context], classes)
        for first in range(0, len(windows), block)
    ]
    return scipy.sparse.csr_matrix(scipy.sparse.vstack(parts, format="csr"))


def token_ages(begins: Bool[np.ndarray, "tokens"]) -> Int[np.ndarray, "tokens"]:
    """Return the number of tokens between each token and the first one of its text."""
    numbers = np.arange(len(begins))
    return numbers - np.maximum.accumulate(np.where(begins, numbers, 0))


def pack_suffixes(tokens: np.ndarray, age: np.ndarray, depth: int, vocab: int) -> Int[np.ndarray, "tokens"]:
    """Return a number for the last `depth` tokens at each token, −1 if its text is shorter; the parent's is that number // vocab."""
    held = np.full(len(tokens), -1, np.int64)
    there = np.flatnonzero(age >= depth - 1)
    held[there] = pack_tokens([tokens[there - lag] for lag in range(depth)], vocab)
    return held


def pack_tokens(parts: list[np.ndarray], vocab: int) -> Int[np.ndarray, "suffixes"]:
    """Return a number for each suffix, whose tokens are given current one first; `vocab`³ must be below 2⁶³."""
    assert vocab ** len(parts) < 2**63, "the vocabulary is too large for suffixes of three tokens"
    packed = np.zeros(len(parts[0]), np.int64)
    for part in parts:
        packed = packed * vocab + part
    return packed


def find_sorted(keys: np.ndarray, wanted: np.ndarray) -> Int[np.ndarray, "wanted"]:
    """Return the place of each wanted number in ascending keys, −1 if it is not there."""
    if not len(keys):
        return np.full(len(wanted), -1)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)


def _pairs(rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat(rows, len(columns)), np.tile(columns, len(rows))


def _indicator(entries: list[tuple[np.ndarray, np.ndarray]], shape: tuple[int, int]) -> scipy.sparse.csr_matrix:
    rows, columns = (np.concatenate(arrays) for arrays in zip(*entries, strict=True))
    return make_indicator(rows, columns, shape)


def _intersect(single: scipy.sparse.csr_matrix, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows in which both columns of a pair hold, and the number of the pair: those of the rarer one, tested for the other."""
    n_tokens, n_conditions = size_of(single)
    by_column = scipy.sparse.csc_matrix(single)
    n_rows = np.diff(by_column.indptr)
    swapped = n_rows[first] > n_rows[second]
    rare, other = np.where(swapped, second, first), np.where(swapped, first, second)
    pair = np.repeat(np.arange(len(rare)), n_rows[rare])
    rows = by_column.indices[expand_ranges(by_column.indptr[rare], n_rows[rare])].astype(np.int64)
    held = np.repeat(np.arange(n_tokens), np.diff(single.indptr)) * n_conditions + single.indices
    both = find_sorted(held, rows * n_conditions + other[pair]) >= 0
    return rows[both], pair[both]


def expand_ranges(starts: np.ndarray, lengths: np.ndarray) -> Int[np.ndarray, "total"]:
    """Return the numbers start, …, start + length − 1 of all ranges, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
