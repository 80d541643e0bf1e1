"""Every reported case has its correct outcome."""

from pathlib import Path

import pytest

from tests.campaigns.cases import campaign
from tests.campaigns.outcomes import Outcomes
from tests.campaigns.reported.case import CASES

QUICK_CASES = (3, 4, 7, 8, 12, 13, 14, 15, 17, 19, 21, 22, 32, 36, 37)
"""Cases that take a few seconds each and have no server or process of their own; all cases: `python -m tests.campaigns.cases`."""


def test_every_case_is_there() -> None:
    assert sorted(CASES) == list(range(1, 38))


@pytest.mark.slow
@pytest.mark.parametrize("number", QUICK_CASES)
def test_case(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    outcomes = Outcomes("reported cases")
    campaign(outcomes, 1, 0, number)
    assert not outcomes.shortfalls
