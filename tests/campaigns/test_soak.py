"""The short form of the soak test."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_soak() -> None:
    """In a process of its own, whose memory is nothing but that of the runs."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.campaigns.soak", "--cases", "15"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2], timeout=600,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "0 fell short" in ended.stdout
