"""Conditions on tokens, and the codes that rules predict, compared with a slow implementation token by token."""

import numpy as np
import pytest

from crux.sae.reading.conditions import Conditions, Kind, token_ages
from crux.sae.reading.harvest import find_text_begins
from crux.sae.reading.rules import Rules, compact_rules, predict_blocks, predict_codes, predict_dense
from crux.sae.reading.token_classes import TokenClasses, classify_texts, no_classes

END = 5
WINDOWS = np.random.default_rng(0).integers(0, 6, (20, 12))
BEGINS = find_text_begins(WINDOWS, END)
CLASSES = TokenClasses(("even", "small"), np.array([[t % 2 == 0, t < 2] for t in range(6)]))
CONDITIONS = Conditions(
    np.array([Kind.SUFFIX] * 4 + [Kind.WITHIN] * 3 + [Kind.CLASS] * 2 + [Kind.START] + [Kind.BOTH] * 2),
    np.array(
        [
            [2, -1, -1], [2, 1, -1], [2, 1, 0], [3, 3, 4],
            [1, 3, -1], [4, 8, -1], [1, 8, -1], [0, 0, -1], [1, 1, -1], [-1, -1, -1],
            [1, 5, -1], [7, 8, -1],
        ]
    ),
)  # fmt: skip


def holds(number: int, text: list[int]) -> bool:
    """Return whether a condition holds at the last token of a text."""
    kind, parts = CONDITIONS.kinds[number], CONDITIONS.parts[number].tolist()
    match kind:
        case Kind.SUFFIX:
            wanted = [token for token in parts if token >= 0][::-1]
            return text[-len(wanted) :] == wanted
        case Kind.WITHIN:
            return parts[0] in text[-parts[1] :]
        case Kind.CLASS:
            return len(text) > parts[1] and bool(CLASSES.members[text[-1 - parts[1]], parts[0]])
        case Kind.START:
            return len(text) == 1
        case _:
            return holds(parts[0], text) and holds(parts[1], text)


def texts() -> list[list[int]]:
    """Return the text up to each token."""
    found: list[list[int]] = []
    for token, first in zip(WINDOWS.reshape(-1).tolist(), BEGINS, strict=True):
        found.append([token] if first else [*found[-1], token])
    return found


def random_rules(seed: int, *, base: float = 0.1) -> Rules:
    rng = np.random.default_rng(seed)
    increments = rng.normal(size=(12, 7)) * (rng.random((12, 7)) < 0.4)
    latent, condition = np.nonzero(increments.T)
    n = len(latent)
    return Rules(
        CONDITIONS, CLASSES, np.concatenate([[0], np.cumsum(np.bincount(latent, minlength=7))]), condition.astype(np.int32),
        np.zeros(n), increments.T[latent, condition], np.zeros(n), np.zeros(n, int), np.zeros(n),
        rng.normal(size=7) + base, np.zeros(7),
    )  # fmt: skip


def test_conditions_hold_where_a_slow_implementation_says() -> None:
    expected = np.array([[holds(number, text) for number in range(12)] for text in texts()])
    assert (expected.sum(0) > 0).all()
    found = CONDITIONS.matches(WINDOWS, BEGINS, CLASSES)
    np.testing.assert_array_equal(found.toarray(), expected)
    assert found.has_canonical_format
    np.testing.assert_array_equal(token_ages(BEGINS), [len(text) - 1 for text in texts()])


@pytest.mark.parametrize("seed", [0, 1])
def test_predicted_codes_are_base_plus_increments_and_not_negative(seed: int) -> None:
    rules = random_rules(seed)
    expected = np.empty((len(BEGINS), 7))
    for t, text in enumerate(texts()):
        for i in range(7):
            mine = range(rules.indptr[i], rules.indptr[i + 1])
            code = rules.base[i] + sum(rules.increment[j] for j in mine if holds(rules.condition[j], text))
            expected[t, i] = max(0, code)
    assert (expected == 0).any()
    assert (rules.base < 0).any()
    np.testing.assert_allclose(predict_dense(rules, WINDOWS, BEGINS), expected, rtol=1e-6, atol=1e-7)
    whole = predict_codes(rules, WINDOWS, BEGINS)
    np.testing.assert_allclose(whole.toarray() + rules.floor, expected, atol=1e-12)
    for tokens, block in predict_blocks(rules, WINDOWS, BEGINS, n_windows=3):
        np.testing.assert_array_equal(block.toarray(), whole[tokens].toarray())


def test_compact_rules_predict_the_same() -> None:
    rules = random_rules(0)
    kept = np.isin(rules.condition, [2, 5, 10, 11])
    latents = np.repeat(np.arange(7), np.diff(rules.indptr))[kept]
    few = rules._replace(
        condition=rules.condition[kept], increment=rules.increment[kept],
        indptr=np.concatenate([[0], np.cumsum(np.bincount(latents, minlength=7))]),
    )  # fmt: skip
    compact = compact_rules(few)
    assert len(compact.conditions.kinds) == 7  # 2, 5, 10, 11 and the parts 1, 7 and 8
    np.testing.assert_array_equal(predict_dense(compact, WINDOWS, BEGINS), predict_dense(few, WINDOWS, BEGINS))


def test_classes_of_tokens() -> None:
    texts = [" The", "the", "ING", " A", "12", " 7", ".", "\n", " ", "é", "⟨e4⟩", ""]
    classes = classify_texts(texts)
    found = {
        name: [t for t, yes in zip(texts, classes.members[:, j], strict=True) if yes]
        for j, name in enumerate(classes.names)
    }
    assert found == {
        "leading space": [" The", " A", " 7", " "], "capital": [" The", "ING", " A"], "all capitals": ["ING"],
        "digits": ["12", " 7"], "punctuation": ["."], "newline": ["\n"], "word piece": ["the", "ING", "é"],
    }  # fmt: skip
    assert no_classes(4).members.shape == (4, 0)
