"""Short form of the campaign that damages the files of stopped jobs, in a process of its own, since it forks."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_short_form() -> None:
    command = [sys.executable, "-m", "tests.campaigns.checkpoints", "--cases", "12", "--seed", "7"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:] + ended.stdout[-2000:]
