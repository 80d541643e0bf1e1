"""The short form of the campaign of interrupted migrations."""

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("case", [0, 3])  # SIGKILL while crux creates the database, and while MLflow does
def test_the_next_start_can_use_the_database(case: int) -> None:
    line = [sys.executable, "-m", "tests.campaigns.migration", "--case", str(case)]
    campaign = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert campaign.returncode == 0, campaign.stdout + campaign.stderr
