"""The greedy choice of rules for a block of latents at once.

Each step adds to every latent the candidate that reduces the sum of squared errors most, given the rules that it has. A suffix takes over
the tokens at which it is the longest one that holds; a context feature or a conjunction adds a correction wherever it holds. All errors are
computed from sums of codes and from overlaps of candidates, never from the tokens.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from crux.sae.reading.conjunctions import Conjunctions
from crux.sae.reading.context_features import split_gains
from crux.sae.reading.fit_text import MIN_CONTEXT_COUNT, FitText
from crux.sae.reading.overlaps import Overlaps
from crux.sae.reading.sparse_matrices import make_csr, size_of, sorted_csr
from crux.sae.reading.suffix_pool import MIN_COUNT, SuffixPool

MAX_EXTRAS = 16
"""Largest number of a latent's rules that are not suffixes."""

JOINT_FITS = 30
"""Number of rules up to which all values are fitted jointly after each step. Later steps fit the new suffix and the one whose tokens it
takes; the values that are returned are always fitted jointly."""


class ChosenRules(NamedTuple):
    """The rules of a block of latents after some number of steps, with their values; rule 0 is the root."""

    place: Int[np.ndarray, "latents rules"]
    """Place of a suffix among the candidates; −1: no suffix."""
    extra: Int[np.ndarray, "latents rules"]
    """The context feature or conjunction; −1: none. A rule that has neither does not exist."""
    value: Float[np.ndarray, "latents rules"]
    increment: Float[np.ndarray, "latents rules"]
    gain: Float[np.ndarray, "latents rules"]


class RuleSearch:
    """The state of the search for a block of latents. Rule 0 is the root, which holds everywhere and is not counted."""

    def __init__(
        self,
        text: FitText,
        pool: SuffixPool,
        conjunctions: Conjunctions,
        overlaps: Overlaps,
        feature_totals: Float[np.ndarray, "latents features"],
        *,
        n_rules: int,
        shrinkage: float,
    ) -> None:
        n_latents, width = pool.nodes.shape
        self._text, self._pool, self._conjunctions, self._overlaps = text, pool, conjunctions, overlaps
        self._shrinkage, self._n_tokens = shrinkage, float(text.n_tokens)
        self._feature_totals = feature_totals
        self._feature_count = text.features.counts.astype(float)
        # of the tokens at which a candidate holds and no longer suffix among the latent's rules does:
        self._count = np.where(pool.nodes >= 0, text.tree.counts[pool.nodes], 0).astype(float)
        self._total = pool.totals.copy()
        self._cross = np.zeros((n_latents, width, min(MAX_EXTRAS, n_rules)))  # overlaps with the latent's extras
        self._owner = np.zeros((n_latents, width), np.int64)  # the rule that decides there now
        self._kept = np.zeros((n_latents, width), bool)
        self._kept[:, 0] = True
        shape = (n_latents, n_rules + 1)
        self._place, self._extra, self._slot = np.full(shape, -1), np.full(shape, -1), np.full(shape, -1)
        self._place[:, 0] = 0
        self._value, self._gain = np.zeros(shape), np.zeros(shape)
        self._value[:, 0] = self._total[:, 0] / self._n_tokens
        self._n_rules = np.zeros(n_latents, np.int64)
        self._n_extras = np.zeros(n_latents, np.int64)
        self._best_extra = np.full(n_latents, -1)
        self._extra_gain = np.full(n_latents, np.inf)  # of the best extra, at the time when it was sought last
        self._stale = np.ones(n_latents, bool)

    def step(self) -> bool:
        """Add the best candidate to the rules of each latent; return False if no latent has any that helps."""
        gains = self._suffix_gains()
        place = gains.argmax(1)
        suffix_gain = gains[np.arange(len(gains)), place]
        # an extra's gain falls as rules are added, so it is sought again only if its last one would win
        again = np.flatnonzero(self._stale & (self._extra_gain > suffix_gain) & (self._n_extras < self._cross.shape[2]))
        self._seek_extras(again)
        takes_extra = (self._n_extras < self._cross.shape[2]) & (self._extra_gain > suffix_gain)
        suffixes = np.flatnonzero(~takes_extra & (suffix_gain > 0))
        extras = np.flatnonzero(takes_extra & (self._extra_gain > 0))
        k = self._n_rules + 1
        self._gain[suffixes, k[suffixes]] = suffix_gain[suffixes]
        self._gain[extras, k[extras]] = self._extra_gain[extras]
        self._add_suffixes(suffixes, place[suffixes])
        self._add_extras(extras, self._best_extra[extras])
        changed = np.concatenate([suffixes, extras])
        self._stale[changed] = True
        self._fit_values(np.sort(changed[self._n_rules[changed] <= JOINT_FITS]))
        return len(changed) > 0

    def rules(self) -> ChosenRules:
        """Return the rules chosen so far, with values that are fitted jointly; the search goes on with its own values."""
        everyone, kept = np.arange(len(self._value)), self._value.copy()
        self._fit_values(everyone)
        increment = self._increments(everyone)
        arrays = [array.copy() for array in (self._place, self._extra, self._value, increment, self._gain)]
        self._value = kept
        return ChosenRules(*arrays)

    def totals_of_extras(self) -> Float[np.ndarray, "latents rules"]:
        """Return the sums of each latent's codes over the tokens of its rules that are no suffixes; 0 for the others."""
        found = np.zeros(self._extra.shape)
        rows, rules = np.nonzero(self._extra >= 0)
        found[rows, rules] = self._extra_totals(rows, self._extra[rows, rules])
        return found

    def _corrections(self, latents: Int[np.ndarray, "chosen"]) -> Float[np.ndarray, "chosen extras"]:
        """Return the corrections of the latents' extras, in the order of `_cross`."""
        found = np.zeros((len(latents), self._cross.shape[2] + 1))
        slot = self._slot[latents]
        np.put_along_axis(
            found, np.where(slot >= 0, slot, self._cross.shape[2]), np.where(slot >= 0, self._value[latents], 0.0), 1
        )
        return found[:, :-1]

    def _suffix_gains(self) -> Float[np.ndarray, "latents candidates"]:
        """Return the gain of each suffix: of giving its tokens, of those of the rule that decides there now, a mean of their own."""
        corrected = np.einsum("lca,la->lc", self._cross, self._corrections(np.arange(len(self._value))))
        total = self._total - corrected
        value = np.take_along_axis(self._value, self._owner, 1)
        owner = np.maximum(np.take_along_axis(self._place, self._owner, 1), 0)
        owner_count = np.take_along_axis(self._count, owner, 1)
        owner_total = np.take_along_axis(total, owner, 1) - owner_count * value
        gains = split_gains(
            total - self._count * value,
            self._count,
            owner_total,
            owner_count,
            shrinkage=self._shrinkage,
            min_count=MIN_COUNT,
        )
        return np.where(self._kept, 0.0, gains)

    def _seek_extras(self, latents: Int[np.ndarray, "chosen"]) -> None:
        """Find the best context feature or conjunction of each latent, given its rules."""
        if not len(latents):
            return
        residual, all_residual, candidates = self._extra_residuals(latents)
        gains = split_gains(
            residual, np.broadcast_to(self._feature_count, residual.shape), all_residual[:, None], self._n_tokens,
            shrinkage=self._shrinkage, min_count=MIN_CONTEXT_COUNT,
        )  # fmt: skip
        both = self._conjunctions.of_latent[latents]
        count = np.where(both >= 0, np.append(self._conjunctions.counts, 0.0)[both], 0.0)
        both_gains = split_gains(
            candidates,
            count,
            all_residual[:, None],
            self._n_tokens,
            shrinkage=self._shrinkage,
            min_count=MIN_CONTEXT_COUNT,
        )
        rows, used = np.nonzero(self._extra[latents] >= 0)
        extra = self._extra[latents][rows, used]
        single = extra < self._overlaps.n_features
        gains[rows[single], extra[single]] = 0
        both_gains[(both[:, :, None] + self._overlaps.n_features == self._extra[latents][:, None, :]).any(2)] = 0
        together = np.concatenate([gains, both_gains], 1)
        best = together.argmax(1)
        row = np.arange(len(latents))
        self._extra_gain[latents] = together[row, best]
        from_both = both[row, np.maximum(best - self._overlaps.n_features, 0)] + self._overlaps.n_features
        self._best_extra[latents] = np.where(best < self._overlaps.n_features, best, from_both)
        self._stale[latents] = False

    def _extra_residuals(
        self, latents: Int[np.ndarray, "chosen"]
    ) -> tuple[
        Float[np.ndarray, "chosen features"], Float[np.ndarray, "chosen"], Float[np.ndarray, "chosen conjunctions"]
    ]:
        """Return the sums of code minus predicted code at each feature, at all tokens, and at the latents' conjunctions."""
        overlaps = self._overlaps
        increment, place, extra = self._increments(latents), self._place[latents], self._extra[latents]
        rows, rules = np.nonzero(place >= 0)
        from_nodes = (
            rows,
            overlaps.node_row[latents[rows], place[rows, rules]],
            increment[rows, rules],
            overlaps.node_features,
        )
        total = self._total_of_nodes(latents, rows, place[rows, rules], increment[rows, rules])
        residual = self._feature_totals[latents] - _spread(from_nodes, len(latents))
        both = self._conjunctions.of_latent[latents]
        candidates = self._conjunctions.totals[latents].copy()
        for q in range(both.shape[1]):
            there = np.flatnonzero(both[:, q] >= 0)
            of_nodes = overlaps.with_nodes(latents[there], both[there, q] + overlaps.n_features)
            held = np.where(place[there] >= 0, np.take_along_axis(of_nodes, np.maximum(place[there], 0), 1), 0.0)
            candidates[there, q] -= (held * increment[there]).sum(1)
        rows, rules = np.nonzero(extra >= 0)
        extras, change = extra[rows, rules], increment[rows, rules]
        single = extras < overlaps.n_features
        overlaps.features.add(extras[single])
        feature_rows = overlaps.features.row_of[extras[single]]
        residual -= _spread((rows[single], feature_rows, change[single], overlaps.features.matrix), len(latents))
        from_both = (
            rows[~single],
            extras[~single] - overlaps.n_features,
            change[~single],
            overlaps.conjunction_features,
        )
        residual -= _spread(from_both, len(latents))
        np.add.at(total, rows, -change * self._extra_counts(extras))
        for q in range(both.shape[1]):
            there = both[rows, q] >= 0
            held = overlaps.of_extras(extras[there], both[rows[there], q] + overlaps.n_features)
            np.add.at(candidates[:, q], rows[there], -change[there] * held)
        return residual, total, candidates

    def _total_of_nodes(
        self, latents: np.ndarray, rows: np.ndarray, places: np.ndarray, change: np.ndarray
    ) -> np.ndarray:
        """Return the sum of all codes minus what the suffixes predict."""
        total = self._pool.totals[latents, 0].copy()
        np.add.at(total, rows, -change * self._text.tree.counts[self._pool.nodes[latents[rows], places]])
        return total

    def _extra_counts(self, extras: Int[np.ndarray, "extras"]) -> Float[np.ndarray, "extras"]:
        return np.concatenate([self._feature_count, self._conjunctions.counts])[extras]

    def _extra_totals(self, latents: np.ndarray, extras: np.ndarray) -> np.ndarray:
        """Return the sums of a latent's codes over the tokens of an extra."""
        single = extras < self._overlaps.n_features
        found = np.empty(len(latents))
        found[single] = self._feature_totals[latents[single], extras[single]]
        both = self._conjunctions.of_latent[latents[~single]] == (extras[~single] - self._overlaps.n_features)[:, None]
        found[~single] = self._conjunctions.totals[latents[~single], both.argmax(1)]
        return found

    def _add_suffixes(self, latents: Int[np.ndarray, "chosen"], places: Int[np.ndarray, "chosen"]) -> None:
        if not len(latents):
            return
        k = self._n_rules[latents] + 1
        owner = self._owner[latents, places]
        self._take_from_ancestors(latents, places, self._count)
        self._take_from_ancestors(latents, places, self._total)
        self._take_from_ancestors(latents, places, self._cross)
        below = (self._pool.ancestors[latents] == places[:, None, None]).any(2) & (
            self._owner[latents] == owner[:, None]
        )
        self._owner[latents] = np.where(below, k[:, None], self._owner[latents])
        self._kept[latents, places] = True
        self._place[latents, k] = places
        self._n_rules[latents] = k
        self._fit_one(latents, owner)
        self._fit_one(latents, k)

    def _add_extras(self, latents: Int[np.ndarray, "chosen"], extras: Int[np.ndarray, "chosen"]) -> None:
        if not len(latents):
            return
        k, slot = self._n_rules[latents] + 1, self._n_extras[latents]
        overlap = self._overlaps.with_nodes(latents, extras)
        held = overlap.copy()
        for rule in range(1, int(k.max())):
            places = self._place[latents, rule]
            there = np.flatnonzero(places > 0)
            amount = overlap[there, places[there]]
            self._subtract(held, there, latents[there], places[there], amount)
        self._cross[latents, :, slot] = held
        self._extra[latents, k], self._slot[latents, k] = extras, slot
        self._n_rules[latents], self._n_extras[latents] = k, slot + 1

    def _take_from_ancestors(self, latents: np.ndarray, places: np.ndarray, array: np.ndarray) -> None:
        """Take what is at new suffixes from their ancestors, up to the nearest one that is a rule."""
        amount = array[latents, places].copy()
        self._subtract(array, latents, latents, places, amount)

    def _subtract(
        self, array: np.ndarray, rows: np.ndarray, latents: np.ndarray, places: np.ndarray, amount: np.ndarray
    ) -> None:
        going = np.ones(len(rows), bool)
        for level in range(self._pool.ancestors.shape[2]):
            above = self._pool.ancestors[latents, places, level]
            now = np.flatnonzero(going & (above >= 0))
            array[rows[now], above[now]] -= amount[now]
            going[now] = ~self._kept[latents[now], above[now]]

    def _fit_one(self, latents: np.ndarray, rule: np.ndarray) -> None:
        """Fit the value of one suffix of each latent, or the root's, given the others."""
        places = self._place[latents, rule]
        owner = self._owner[latents, places]
        corrected = (self._cross[latents, places] * self._corrections(latents)).sum(1)
        pull = np.where(rule > 0, self._shrinkage, 0.0)
        count = self._count[latents, places] + pull
        total = self._total[latents, places] - corrected + pull * self._value[latents, owner]
        self._value[latents, rule] = np.where(count > 0, total / np.where(count > 0, count, 1), 0.0)

    def _increments(self, latents: Int[np.ndarray, "chosen"]) -> Float[np.ndarray, "chosen rules"]:
        """Return the increments of all rules: a suffix's value minus that of the next shorter one, an extra's correction."""
        value, place = self._value[latents], self._place[latents]
        owner = np.take_along_axis(self._owner[latents], np.maximum(place, 0), 1)
        increment = np.where(place > 0, value - np.take_along_axis(value, owner, 1), value)
        return np.where((place >= 0) | (self._extra[latents] >= 0), increment, 0.0)

    def _fit_values(self, latents: Int[np.ndarray, "chosen"]) -> None:
        """Fit all values of some latents jointly, by solving the linear equations in which each one is a shrunk mean given the others.

        A suffix s, over its own tokens: N_s v_s + Σ_f |s ∩ f| β_f + κ (v_s − v_next shorter) = S_s, without κ for the root. An extra f,
        over all its tokens: Σ_s |s ∩ f| v_s + Σ_g |f ∩ g| β_g + κ β_f = S_f.
        """
        if not len(latents):
            return
        n = 1 + int(self._n_rules[latents].max())
        place, extra, slot = self._place[latents, :n], self._extra[latents, :n], self._slot[latents, :n]
        matrix, right = np.zeros((len(latents), n, n)), np.zeros((len(latents), n))
        rows, rules = np.nonzero(place >= 0)
        at = latents[rows], place[rows, rules]
        pull = np.where(rules > 0, self._shrinkage, 0.0)
        matrix[rows, rules, self._owner[at]] -= pull
        matrix[rows, rules, rules] += self._count[at] + pull
        right[rows, rules] = self._total[at]
        rows, rules = np.nonzero(extra >= 0)
        extras, mine = extra[rows, rules], latents[rows]
        matrix[rows, rules, rules] += self._shrinkage
        right[rows, rules] = self._extra_totals(mine, extras)
        cross = self._cross[mine[:, None], np.maximum(place[rows], 0), slot[rows, rules][:, None]]
        cross = np.where(place[rows] >= 0, cross, 0.0)
        matrix[rows, rules] += cross
        matrix[rows, :, rules] += cross
        i, a, b = np.nonzero((extra[:, :, None] >= 0) & (extra[:, None, :] >= 0))
        matrix[i, a, b] += np.where(
            a == b, self._extra_counts(extra[i, a]), self._overlaps.of_extras(extra[i, a], extra[i, b])
        )
        empty = matrix[:, np.arange(n), np.arange(n)] == 0  # rules that do not exist, or a root without tokens
        i, a = np.nonzero(empty)
        matrix[i, a] = 0
        right[i, a] = 0
        matrix[i, a, a] = 1
        self._value[latents, :n] = np.linalg.solve(matrix, right[:, :, None])[:, :, 0]


def _spread(entries: tuple[np.ndarray, np.ndarray, np.ndarray, scipy.sparse.csr_matrix], n_rows: int) -> np.ndarray:
    """Return Σ factor × row of a matrix for each of `n_rows`: entries (row, row of the matrix, factor) and the matrix."""
    rows, columns, factors, matrix = entries
    weights = make_csr(factors, rows, columns, (n_rows, size_of(matrix)[0]))
    return sorted_csr(weights @ matrix).toarray()
