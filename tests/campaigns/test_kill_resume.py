"""Short form of the campaign that kills jobs and resumes them, in a process of its own, since it forks."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaigns.kill_resume import WEIGHTS, draw_case
from tests.campaigns.resumable_jobs import JOBS

ROOT = Path(__file__).resolve().parents[2]


def test_cases_depend_on_seed_and_number_and_cover_everything() -> None:
    cases = [draw_case(0, number) for number in range(200)]
    assert cases == [draw_case(0, number) for number in range(200)]
    assert {case.job for case in cases} == set(JOBS) >= set(WEIGHTS)
    assert {len(case.kills) for case in cases} == {1, 2}
    assert {(kill.number.name, kill.at_operation) for case in cases for kill in case.kills} == {
        (name, at) for name in ("SIGKILL", "SIGTERM", "SIGINT") for at in (True, False)
    }
    assert {case.other_file_system for case in cases} == {True, False}


@pytest.mark.slow
def test_short_form() -> None:
    command = [sys.executable, "-m", "tests.campaigns.kill_resume", "--cases", "5", "--seed", "7"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:] + ended.stdout[-2000:]
