"""Rules as text: what they test, their numbers, and examples."""

import numpy as np
import pytest

import crux
from crux.sae.reading.conditions import Conditions, Kind
from crux.sae.reading.harvest import ReadText
from crux.sae.reading.rule_texts import describe_condition, describe_rules, find_examples, token_names
from crux.sae.reading.rules import Rules
from crux.sae.reading.sparse_codes import SparseCodes
from crux.sae.reading.token_classes import TokenClasses
from crux.subjects.token_texts import TokenTexts
from crux.subjects.tokenizer import load_tokenizer

CONDITIONS = Conditions(
    np.array([Kind.SUFFIX, Kind.SUFFIX, Kind.WITHIN, Kind.CLASS, Kind.CLASS, Kind.START, Kind.BOTH]),
    np.array([[1, -1, -1], [1, 0, -1], [2, 32, -1], [0, 0, -1], [0, 1, -1], [-1, -1, -1], [0, 4, -1]]),
)
RULES = Rules(
    CONDITIONS, TokenClasses(("digits",), np.array([[False], [False], [True]])), np.array([0, 2, 3]), np.array([0, 1, 2], np.int32),
    np.array([2.0, 0.5, 1.0]), np.array([2.0, -1.5, 1.0]), np.array([9.0, 3.0, 4.0]), np.array([4, 2, 5]), np.array([6.0, 1.0, 5.0]),
    np.zeros(2), np.array([8.0, 10.0]),
)  # fmt: skip


def test_conditions_are_written_in_the_order_of_the_text() -> None:
    names = ["of", "␣the", "7"]
    assert [describe_condition(RULES, number, names) for number in range(7)] == [
        "␣the", "of|␣the", "7 within the last 32", "token: digits", "token before: digits", "first token of a text",
        "␣the and token before: digits",
    ]  # fmt: skip


def test_rules_have_their_mean_count_and_share() -> None:
    first, second = describe_rules(RULES, 0, ["a", "b", "c"])
    assert first == ("b", 2.0, 1.5, 4, 0.75, 9.0)
    assert second == ("a|b", 0.5, 0.5, 2, 0.125, 3.0)
    assert [rule.text for rule in describe_rules(RULES, 1, ["a", "b", "c"])] == ["c within the last 32"]


def test_an_example_is_the_strongest_token_where_the_condition_holds() -> None:
    windows = np.array([[0, 1, 0, 1, 2, 1], [1, 0, 1, 0, 0, 1]])
    begins = np.zeros(12, bool)
    begins[[0, 6]] = True
    dense = np.zeros((12, 2), np.float32)
    dense[[0, 3, 6], 0] = [9, 1, 5]  # token 0 is not the one of the rule; token 6 is, at the beginning of its text
    rows, latents = np.nonzero(dense)
    codes = SparseCodes(
        np.concatenate([[0], np.cumsum((dense != 0).sum(1))]), latents.astype(np.int32), dense[rows, latents], 2
    )
    examples = find_examples(RULES, ReadText(windows, begins, codes, None))
    assert examples.tolist() == [6, 3, 4]  # the second latent never fires: the first token where the condition holds


@pytest.mark.parametrize("n", [300])
def test_names_of_tokens_show_spaces_and_line_breaks(n: int) -> None:
    tokenizer, _ = load_tokenizer(crux.load_subject("tiny").name)
    names = token_names(TokenTexts(tokenizer), n)
    assert len(names) == n
    assert all(names)
    assert not any(" " in name or "\n" in name for name in names)
    assert any(name.startswith("␣") for name in names)
    assert token_names(None, 2) == ["#0", "#1"]
