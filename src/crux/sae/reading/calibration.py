"""Calibration of the explanations and their scores against known answers, before anyone reads a score of an SAE.

Codes with a known explanation are planted in a text and explained like an SAE's: the scores must reach the best possible ones. The same
codes shifted against the text must not be explicable, and the scores must pass the sanity tests.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from crux.sae.reading.conditions import Conditions, Kind, match_text
from crux.sae.reading.fit_rules import SHRINKAGE, fit_rule_lists
from crux.sae.reading.fit_text import FitText, prepare_fit
from crux.sae.reading.harvest import ReadText, find_text_begins
from crux.sae.reading.planted_codes import plant_codes, shift_codes
from crux.sae.reading.rule_scores import RuleScores, score_rules
from crux.sae.reading.sanity_tests import SanityRow, run_sanity_tests
from crux.sae.reading.sparse_codes import SparseCodes
from crux.sae.reading.token_classes import TokenClasses
from crux.sae.reading.whole_tree import score_whole_tree

TOLERANCE = 0.005
"""Largest mean distance of the correlation from its ceiling, and largest mean |ρ| of shifted codes."""

AP_TOLERANCE = 0.2
"""Largest deviation of the average precision of shifted codes from their density, as a share of it."""

SIZES = (1, 2, 10)
"""Numbers of rules per latent."""

KINDS = ("token", "bigram", "bag", "conjunction")
"""Kinds of planted explanations: the current token, the last two, a token within the last 8, and a token with another one within the
last 32."""

MIN_FIT, MIN_HELD_OUT = 30, 50
"""Least numbers of fit and held-out tokens at which a planted condition holds."""

MAX_DENSITY = 0.2
"""Largest share of tokens at which a planted condition holds."""


class CalibrationRow(NamedTuple):
    """The scores of the latents of one kind."""

    kind: str
    n_latents: int
    ceiling: float
    """Mean of the largest correlation that an explanation can have; 0 for shifted codes."""
    rho: Mapping[int, float]
    """Mean correlation by number of rules."""
    shortfall: Mapping[int, float]
    """Mean of ceiling − ρ by number of rules; mean |ρ| for shifted codes."""
    worst: Mapping[int, float]
    """Largest ceiling − ρ, or |ρ|, of any latent."""
    tree_rho: float
    """Mean correlation of the whole suffix tree."""
    ap: Mapping[int, float]
    """Mean average precision by number of rules."""
    density: float
    """Mean density on the held-out text."""


class CalibrationTable(NamedTuple):
    """The rows of the calibration."""

    planted: list[CalibrationRow]
    """A row for each kind of planted explanation."""
    shifted: CalibrationRow
    """The same codes, shifted against the text: nothing can explain them."""
    sanity: list[SanityRow]
    """The sanity tests of each score."""


def calibrate_scores(
    fit: ReadText, held_out: ReadText, classes: TokenClasses, *, n_each: int, seed: int, shrinkage: float = SHRINKAGE
) -> CalibrationTable:
    """Return how well planted explanations are found in a text, how well shifted ones, and the sanity tests of the scores.

    Args:
        fit: the text whose tokens are used; its codes are not. The same for `held_out`.
        n_each: number of planted latents of each kind; fewer if the text does not have enough conditions of suitable frequency.
    """
    prepared = prepare_fit(fit.windows, fit.begins, classes)
    conditions, planted, kinds = choose_planted(prepared, fit, held_out, n_each=n_each, seed=seed)
    sides = [
        plant_codes(side.windows, side.begins, conditions, planted, classes, seed=seed + 1 + number)
        for number, side in enumerate((fit, held_out))
    ]
    explained = _explain(prepared, fit, held_out, sides[0].codes, sides[1].codes, shrinkage=shrinkage)
    rows = [_summarise(kind, np.array(kinds) == kind, *explained, sides[1].ceiling) for kind in dict.fromkeys(kinds)]
    shifted = [shift_codes(side.codes, by=side.codes.n_tokens // 2 + 17) for side in sides]
    null = _explain(prepared, fit, held_out, shifted[0], shifted[1], shrinkage=shrinkage)
    row = _summarise("shifted", np.ones(len(planted), bool), *null, np.zeros(len(planted)))
    return CalibrationTable(rows, row, run_sanity_tests(n_items=100_000, n_draws=5, seed=seed))


def choose_planted(
    prepared: FitText, fit: ReadText, held_out: ReadText, *, n_each: int, seed: int
) -> tuple[Conditions, Int[np.ndarray, "n_latents"], list[str]]:
    """Return conditions, the numbers of those to plant, and their kinds: token, bigram, bag and conjunction.

    Bags are tokens within the last 8; conjunctions are a token and another one within the last 32. All hold often enough on both sides.
    """
    rng = np.random.default_rng(seed)
    tree, vocab = prepared.tree, prepared.tree.vocab
    frequent = np.flatnonzero(np.bincount(fit.tokens, minlength=vocab) >= MIN_FIT)
    bigrams = np.arange(tree.first[1], tree.first[2])
    bigrams = tree.tokens_of(bigrams[tree.counts[bigrams] >= MIN_FIT])
    n_tried = 20 * n_each
    numbers: dict[tuple[int, ...], int] = {}  # of each condition, which occurs once

    def add(*row: int | np.integer) -> int:
        return numbers.setdefault((*map(int, row), *[-1] * (4 - len(row))), len(numbers))

    tried: dict[str, list[int]] = {
        "token": [add(Kind.SUFFIX, token) for token in _draw(rng, frequent, n_tried)],
        "bigram": [add(Kind.SUFFIX, *row) for row in _draw(rng, bigrams, n_tried)],
        "bag": [add(Kind.WITHIN, token, 8) for token in _draw(rng, frequent, n_tried)],
        "conjunction": [
            add(Kind.BOTH, add(Kind.SUFFIX, now), add(Kind.WITHIN, before, 32))
            for now, before in rng.choice(frequent, (5 * n_tried, 2))
        ],
    }
    table = np.array(list(numbers), np.int64)
    conditions = Conditions(table[:, 0], table[:, 1:])
    suitable = _suitable(conditions, fit, held_out, prepared.classes)
    chosen = {
        kind: [number for number in dict.fromkeys(found) if suitable[number]][:n_each] for kind, found in tried.items()
    }
    planted = np.array([number for found in chosen.values() for number in found], np.int64)
    return conditions, planted, [kind for kind, found in chosen.items() for _ in found]


def _suitable(
    conditions: Conditions, fit: ReadText, held_out: ReadText, classes: TokenClasses
) -> Bool[np.ndarray, "conditions"]:
    """Return which conditions hold often enough on both sides and not too often; a conjunction must hold at half of its token at most."""
    counts = [
        np.bincount(match_text(conditions, side.windows, side.begins, classes).indices, minlength=len(conditions.kinds))
        for side in (fit, held_out)
    ]
    both = conditions.kinds == Kind.BOTH
    part = np.where(both, conditions.parts[:, 0], 0)
    narrow = ~both | (counts[0] <= counts[0][part] / 2)
    return (counts[0] >= MIN_FIT) & (counts[1] >= MIN_HELD_OUT) & (counts[0] <= MAX_DENSITY * fit.n_tokens) & narrow


def _draw(rng: np.random.Generator, values: np.ndarray, n: int) -> np.ndarray:
    return values[rng.permutation(len(values))[:n]]


def _explain(
    prepared: FitText,
    fit: ReadText,
    held_out: ReadText,
    codes: SparseCodes,
    held_out_codes: SparseCodes,
    *,
    shrinkage: float,
) -> tuple[RuleScores, Float[np.ndarray, "n_latents"]]:
    lists = fit_rule_lists(prepared, codes, sizes=SIZES, shrinkage=shrinkage)
    scores = score_rules(lists, fit, held_out, fit_codes=codes, held_out_codes=held_out_codes)
    tree = score_whole_tree(prepared, held_out, fit_codes=codes, held_out_codes=held_out_codes, shrinkage=shrinkage)
    return scores, tree.ceiling_rho


def _summarise(
    kind: str,
    chosen: Bool[np.ndarray, "n_latents"],
    scores: RuleScores,
    tree_rho: Float[np.ndarray, "n_latents"],
    ceiling: Float[np.ndarray, "n_latents"],
) -> CalibrationRow:
    rho = scores.rho[:, chosen]
    short = np.abs(rho) if kind == "shifted" else ceiling[chosen] - rho
    return CalibrationRow(
        kind,
        int(chosen.sum()),
        float(ceiling[chosen].mean()),
        _by_size(rho.mean(1)),
        _by_size(short.mean(1)),
        _by_size(short.max(1)),
        float(tree_rho[chosen].mean()),
        _by_size(scores.ap[:, chosen].mean(1)),
        float(scores.density[chosen].mean()),
    )


def _by_size(values: Float[np.ndarray, "sizes"]) -> dict[int, float]:
    return dict(zip(SIZES, values.tolist(), strict=True))


def made_up_text(*, vocab: int, n_windows: int, context: int, seed: int, order_seed: int) -> ReadText:
    """Return a text without codes in which some tokens are frequent and tokens depend on the one before: for a calibration without a model.

    A token is one of four successors of the token before with probability ½, and otherwise drawn with probabilities ∝ 1 / (rank + 2).
    Token 0 ends a text.

    Args:
        order_seed: seed of the successors, which the two sides of a text share.
    """
    rng, order = np.random.default_rng(seed), np.random.default_rng(order_seed)
    p = 1 / np.arange(3, vocab + 3)
    successors = order.choice(vocab, size=(vocab, 4), p=p / p.sum())
    fresh = rng.choice(vocab, size=(context, n_windows), p=p / p.sum())
    follows = rng.random((context, n_windows)) < 0.5
    windows = np.empty((context, n_windows), np.int64)
    windows[0] = fresh[0]
    for position in range(1, context):
        successor = successors[windows[position - 1], rng.integers(0, 4, n_windows)]
        windows[position] = np.where(follows[position], successor, fresh[position])
    windows = np.ascontiguousarray(windows.T)
    empty = SparseCodes(np.zeros(windows.size + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), 0)
    return ReadText(windows, find_text_begins(windows, 0), empty, None)
