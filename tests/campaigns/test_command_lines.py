"""The short form of the campaign of command lines, and checks that it can fail."""

import pytest

from tests.campaigns import command_lines
from tests.campaigns.command_lines import STARTED, Case, campaign, draw_case, judge
from tests.campaigns.forks import CommandOutcome
from tests.campaigns.outcomes import Outcomes


@pytest.mark.slow
def test_wrong_command_lines_are_one_line_and_right_ones_start(monkeypatch: pytest.MonkeyPatch) -> None:
    # other tests that run at the same time slow each CPU second down; the long form keeps the limit
    monkeypatch.setattr(command_lines, "MAX_CPU_SECONDS", 3 * command_lines.MAX_CPU_SECONDS)
    outcomes = Outcomes("command_lines")
    campaign(outcomes, 60, 7, None)
    assert not outcomes.shortfalls, outcomes.table()


def test_cases_are_a_pure_function_of_seed_and_number() -> None:
    assert [draw_case(5, n) for n in range(50)] == [draw_case(5, n) for n in range(50)]
    assert draw_case(5, 1) != draw_case(6, 1)


LINE = "crux: layer=99: the model has 8 layers, allowed are 0 to 7\n"


@pytest.mark.parametrize(
    ("outcome", "wrong"),
    [
        (CommandOutcome(2, "", LINE, 0.5, 0.4, False), None),
        (CommandOutcome(2, "", LINE, 0.5, 1.4, False), "1.4 CPU seconds"),
        (CommandOutcome(2, "", LINE.replace("layer", "seed"), 0.5, 0.4, False), "does not name"),
        (CommandOutcome(2, "", LINE + LINE, 0.5, 0.4, False), "not one line"),
        (CommandOutcome(1, "", LINE, 0.5, 0.4, False), "not one line"),
        (CommandOutcome(1, "", "Traceback (most recent call last):\n", 0.5, 0.4, False), "traceback"),
        (CommandOutcome(0, STARTED, "", 0.5, 0.4, False), "accepted"),
        (CommandOutcome(-9, "", "", 60, 60, True), "no answer"),
    ],
)
def test_a_wrong_answer_is_noticed(outcome: CommandOutcome, wrong: str | None) -> None:
    judged = judge(Case(["layer=99"], "layer", "wrong value of a key"), outcome)
    assert judged == wrong if wrong is None else wrong in (judged or "")


def test_a_refusal_of_a_right_command_line_is_noticed() -> None:
    right = Case(["seed=3"], "", "odd but right")
    assert judge(right, CommandOutcome(0, STARTED, "", 0.5, 0.4, False)) is None
    assert (judge(right, CommandOutcome(2, "", LINE, 0.5, 0.4, False)) or "").startswith("refused")
