"""The fit of rules: planted explanations are found, and values and gains are those of their definitions, computed token by token."""

import numpy as np
import pytest

from crux.sae.reading.conditions import Conditions, Kind
from crux.sae.reading.fit_rules import fit_rule_lists, fit_rules
from crux.sae.reading.fit_text import prepare_fit
from crux.sae.reading.harvest import ReadText, find_text_begins
from crux.sae.reading.planted_codes import plant_codes, shift_codes
from crux.sae.reading.rules import Rules, predict_dense
from crux.sae.reading.sparse_codes import SparseCodes
from crux.sae.reading.token_classes import TokenClasses, no_classes

VOCAB, KAPPA = 60, 2.0
CLASSES = TokenClasses(("a", "b"), np.random.default_rng(3).random((VOCAB, 2)) < [[0.3, 0.15]])


def make_text(n_windows: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    p = 1 / np.arange(2, VOCAB + 2)
    windows = np.random.default_rng(seed).choice(VOCAB, size=(n_windows, 64), p=p / p.sum())
    return windows, find_text_begins(windows, 0)


FIT, HELD_OUT = make_text(800, seed=0), make_text(400, seed=1)
PLANTED = Conditions(
    np.array([Kind.SUFFIX, Kind.SUFFIX, Kind.WITHIN, Kind.CLASS, Kind.WITHIN, Kind.SUFFIX, Kind.BOTH, Kind.SUFFIX]),
    np.array(
        [
            [20, -1, -1], [7, 3, -1], [50, 8, -1], [1, 1, -1],
            [30, 32, -1], [15, -1, -1], [4, 5, -1], [1, 1, 1],
        ]
    ),
)  # fmt: skip


def random_codes(n_latents: int, *, seed: int, n: int) -> SparseCodes:
    """Return codes that depend on the last two tokens and on whether a token is among the last eight, with noise."""
    rng = np.random.default_rng(seed)
    tokens = FIT[0].reshape(-1)[:n]
    before = np.concatenate([[0], tokens[:-1]])
    strength = rng.exponential(size=(VOCAB, n_latents)) * (rng.random((VOCAB, n_latents)) < 0.2)
    inhibited = rng.random((VOCAB, n_latents)) < 0.3
    recent = PLANTED.matches(*FIT, CLASSES)[:n, 2].toarray()  # a token is among the last eight
    dense = (strength[tokens] * ~inhibited[before] + recent * rng.random(n_latents)) * rng.gamma(
        4, 0.25, (n, n_latents)
    )
    dense = dense.astype(np.float32)
    rows, latents = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum((dense != 0).sum(1))])
    return SparseCodes(indptr, latents.astype(np.int32), dense[rows, latents], n_latents)


def deepest(rules: Rules, latent: int, held: np.ndarray) -> tuple[np.ndarray, list[int], list[int]]:
    """Return the rule that is the longest suffix at each token (−1: none), and the latent's suffix rules and other rules."""
    mine = range(rules.indptr[latent], rules.indptr[latent + 1])
    suffixes = [j for j in mine if rules.conditions.kinds[rules.condition[j]] == Kind.SUFFIX]
    length = {j: (rules.conditions.parts[rules.condition[j]] >= 0).sum() for j in suffixes}
    longest = np.full(len(held), -1)
    for j in sorted(suffixes, key=lambda j: length[j]):
        longest[held[:, rules.condition[j]]] = j
    return longest, suffixes, [j for j in mine if j not in suffixes]


def test_planted_explanations_are_found_with_one_rule() -> None:
    fit = plant_codes(*FIT, PLANTED, np.arange(8), CLASSES, seed=1)
    held_out = plant_codes(*HELD_OUT, PLANTED, np.arange(8), CLASSES, seed=2)
    assert fit.codes.firings().min() >= 20
    lists = fit_rule_lists(prepare_fit(*FIT, CLASSES), fit.codes, sizes=[1, 2, 10])
    true = held_out.codes.matrix().toarray()
    for size, rules in lists.items():
        predicted = predict_dense(rules, *HELD_OUT)
        rho = np.array([np.corrcoef(predicted[:, i], true[:, i])[0, 1] for i in range(8)])
        if size <= 2:
            assert (rho > held_out.ceiling - 0.005).all(), (size, held_out.ceiling - rho)
        else:
            assert (rho > held_out.ceiling - 0.03).all(), (size, held_out.ceiling - rho)
    first = lists[1].condition
    parts = [lists[1].conditions.parts[c].tolist() for c in first[:6]]
    assert parts == PLANTED.parts[:6].tolist()
    assert lists[1].conditions.kinds[first[6]] == Kind.BOTH
    np.testing.assert_array_equal(lists[1].counts, fit.codes.firings())
    np.testing.assert_allclose(lists[1].total, fit.codes.matrix().toarray().sum(0), rtol=1e-6)


def test_a_token_except_after_another_is_two_rules() -> None:
    tokens = FIT[0].reshape(-1)
    before = np.concatenate([[-1], tokens[:-1]])
    fires = (tokens == 5) & ~((before == 2) & ~FIT[1])
    codes = SparseCodes(
        np.concatenate([[0], np.cumsum(fires)]), np.zeros(fires.sum(), np.int32), np.ones(fires.sum(), np.float32), 1
    )
    text = ReadText(FIT[0], FIT[1], codes, None)
    rules = fit_rules(text, n_rules=2, token_classes=no_classes(VOCAB))
    assert [rules.conditions.parts[c].tolist() for c in rules.condition] == [[5, -1, -1], [5, 2, -1]]
    assert rules.value[0] == pytest.approx(1, abs=0.02)
    assert rules.value[1] == pytest.approx(0, abs=0.05)
    assert rules.total[1] == 0


@pytest.mark.parametrize("size", [3, 12, 40])
def test_values_are_shrunk_means_over_the_tokens_of_the_longest_suffix(size: int) -> None:
    codes = random_codes(8, seed=0, n=len(FIT[1]))
    lists = fit_rule_lists(prepare_fit(*FIT, CLASSES), codes, sizes=[size], shrinkage=KAPPA)
    rules, dense = lists[size], codes.matrix().toarray().astype(np.float64)
    held = rules.conditions.matches(*FIT, CLASSES).toarray() > 0
    kinds = set()
    for latent in range(8):
        longest, suffixes, others = deepest(rules, latent, held)
        corrections = sum((rules.value[j] * held[:, rules.condition[j]] for j in others), np.zeros(len(held)))
        values = np.array([rules.base[latent], *rules.value])[longest + 1]  # the base where there is no suffix
        error = dense[:, latent] - corrections - values
        assert error[longest == -1].sum() == pytest.approx(0, abs=1e-6)
        for j in suffixes:
            condition = rules.conditions.parts[rules.condition[j]]
            shorter = [
                k for k in suffixes if k != j and is_ancestor(rules.conditions.parts[rules.condition[k]], condition)
            ]
            next_shorter = max(
                shorter, key=lambda k: (rules.conditions.parts[rules.condition[k]] >= 0).sum(), default=None
            )
            owner = rules.base[latent] if next_shorter is None else rules.value[next_shorter]
            assert error[longest == j].sum() == pytest.approx(KAPPA * (rules.value[j] - owner), abs=1e-6)
            assert rules.increment[j] == pytest.approx(rules.value[j] - owner, abs=1e-9)
        for j in others:
            assert error[held[:, rules.condition[j]]].sum() == pytest.approx(KAPPA * rules.value[j], abs=1e-6)
        kinds |= {int(rules.conditions.kinds[rules.condition[j]]) for j in [*suffixes, *others]}
        np.testing.assert_allclose(
            predict_dense(rules, *FIT)[:, latent], np.maximum(corrections + values, 0), rtol=1e-5, atol=1e-6
        )
    assert size == 3 or len(kinds) > 1, "only suffixes were tested"


def is_ancestor(shorter: np.ndarray, longer: np.ndarray) -> bool:
    n = int((shorter >= 0).sum())
    return n < int((longer >= 0).sum()) and shorter[:n].tolist() == longer[:n].tolist()


def test_each_rule_has_the_gain_of_its_definition_and_no_suffix_has_a_larger_one() -> None:
    """Gains are those of splitting the errors of the list so far, computed from the tokens."""
    codes = random_codes(4, seed=1, n=len(FIT[1]))
    prepared = prepare_fit(*FIT, CLASSES)
    lists = fit_rule_lists(prepared, codes, sizes=list(range(1, 7)), shrinkage=KAPPA)
    dense = codes.matrix().toarray().astype(np.float64)
    held = lists[6].conditions.matches(*FIT, CLASSES).toarray() > 0
    at = prepared.tree.at
    for latent in range(4):
        for size in range(1, 7):
            new = lists[size].indptr[latent] + size - 1
            condition = lists[size].condition[new]
            before = lists.get(size - 1)
            if before is None:
                longest, others = np.full(len(held), -1), []
                predicted = np.full(len(held), dense[:, latent].mean())
            else:
                longest, _, others = deepest(before, latent, held)
                predicted = np.array([before.base[latent], *before.value])[longest + 1]
                predicted = predicted + sum(before.value[j] * held[:, before.condition[j]] for j in others)
            error = dense[:, latent] - predicted
            if lists[size].conditions.kinds[condition] != Kind.SUFFIX:
                assert lists[size].gain[new] == pytest.approx(
                    gain(error, held[:, condition], np.ones(len(held), bool)), rel=1e-6
                )
                continue
            suffix = held[:, condition]
            assert lists[size].gain[new] == pytest.approx(suffix_gain(error, suffix, longest, before), rel=1e-6)
            for node in np.random.default_rng(size).choice(np.unique(at[at >= 0]), 15, replace=False):
                where = (at == node).any(1)
                assert suffix_gain(error, where, longest, before) <= lists[size].gain[new] * (1 + 1e-9)


def suffix_gain(error: np.ndarray, suffix: np.ndarray, longest: np.ndarray, before: Rules | None) -> float:
    """Return the gain of a suffix over the tokens at which it would be the longest one that holds."""
    owners = {-1}
    if before is not None:
        inside = [j for j in np.unique(longest[suffix]) if j >= 0 and not (longest == j)[~suffix].any()]
        owners = {j for j in np.unique(longest[suffix]) if j not in inside} or {-2}
        assert len(owners) == 1
    (owner,) = owners
    if owner == -2:
        return 0.0
    return gain(error, suffix & (longest == owner), longest == owner)


def gain(error: np.ndarray, part: np.ndarray, whole: np.ndarray) -> float:
    n, n_all = part.sum(), whole.sum()
    if n < 3 or n == n_all:
        return 0.0
    rest = whole & ~part
    total = n * error[part].mean() ** 2 + rest.sum() * error[rest].mean() ** 2 - n_all * error[whole].mean() ** 2
    return float(total * (n / (n + KAPPA)) ** 2)


def test_lists_are_nested_repeatable_and_independent_of_the_sizes_and_of_other_latents() -> None:
    codes = random_codes(10, seed=2, n=len(FIT[1]))
    prepared = prepare_fit(*FIT, CLASSES)
    first = fit_rule_lists(prepared, codes, sizes=[2, 10, 40])
    second = fit_rule_lists(prepared, codes, sizes=[40])
    for name, array in zip(Rules._fields, first[40], strict=True):
        if isinstance(array, np.ndarray):
            np.testing.assert_array_equal(array, getattr(second[40], name))
    for latent in range(10):
        short = first[2].condition[first[2].indptr[latent] : first[2].indptr[latent + 1]]
        assert short.tolist() == first[10].condition[first[10].indptr[latent] :][:2].tolist()
    few = codes.matrix()[:, 3:5].tocsr()
    alone = fit_rule_lists(prepared, SparseCodes(few.indptr, few.indices, few.data, 2), sizes=[10])[10]
    both = slice(first[10].indptr[3], first[10].indptr[5])
    np.testing.assert_array_equal(alone.counts, first[10].counts[both])
    np.testing.assert_allclose(alone.value, first[10].value[both], rtol=1e-9, atol=1e-12)


def test_latents_that_never_fire_have_no_rules() -> None:
    codes = SparseCodes(np.zeros(len(FIT[1]) + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), 3)
    rules = fit_rules(ReadText(*FIT, codes, None), n_rules=4, token_classes=CLASSES)
    assert rules.indptr.tolist() == [0, 0, 0, 0]
    assert not predict_dense(rules, *HELD_OUT).any()


def test_shifted_codes_move_in_a_circle() -> None:
    codes = random_codes(3, seed=0, n=640)
    np.testing.assert_array_equal(
        shift_codes(codes, by=100).matrix().toarray(), np.roll(codes.matrix().toarray(), 100, 0)
    )
