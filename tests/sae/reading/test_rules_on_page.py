"""Rules as parts of the page: tokens in the order of the text, words for everything else."""

import numpy as np

from crux.sae.figures.features_page_data import PageRule
from crux.sae.reading.conditions import Conditions, Kind
from crux.sae.reading.rules import Rules
from crux.sae.reading.rules_on_page import page_rules
from crux.sae.reading.token_classes import TokenClasses


def test_every_kind_of_rule_by_hand() -> None:
    kinds = np.array([Kind.SUFFIX, Kind.WITHIN, Kind.CLASS, Kind.CLASS, Kind.START, Kind.BOTH])
    parts = np.array([[7, 4, -1], [9, 8, -1], [1, 0, -1], [0, 1, -1], [-1, -1, -1], [0, 1, -1]])
    classes = TokenClasses(names=("digits", "capital"), members=np.zeros((20, 2), bool))
    numbers = np.arange(1.0, 7.0)
    rules = Rules(
        Conditions(kinds, parts), classes, np.array([0, 6, 6]), np.arange(6), numbers, numbers, numbers, np.arange(10, 16), numbers,
        np.zeros(2), np.array([10.0, 0.0]),
    )  # fmt: skip
    none, found = page_rules(rules, np.array([1, 0]), n_rules=10)
    assert none == []
    assert [rule.parts for rule in found] == [
        (4, 7),
        (9, "within the last 8"),
        ("token: capital",),
        ("token before: digits",),
        ("first token of a text",),
        (4, 7, "and", 9, "within the last 8"),
    ]
    assert found[0] == PageRule((4, 7), 1.0, 10, 0.1, adds=False)
    assert found[1] == PageRule((9, "within the last 8"), 2.0, 11, 0.2, adds=True)
    assert len(page_rules(rules, np.array([0]), n_rules=3)[0]) == 3
