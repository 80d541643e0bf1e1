"""The short form of the campaign of tracking faults: faults of the database, which need no server."""

import subprocess
import sys

import pytest

from tests.campaigns.tracking_faults import KINDS

SHORT = [("is deleted", "middle", "stays"), ("is full", "end", "stays"), ("is locked", "middle", "SIGTERM")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHORT)
def test_database_faults_lose_nothing(kind: tuple[str, str, str]) -> None:
    case = [(fault and fault.name, moment, then) for fault, moment, then in KINDS].index(kind)
    line = [sys.executable, "-m", "tests.campaigns.tracking_faults", "--case", str(case)]
    campaign = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert campaign.returncode == 0, campaign.stdout + campaign.stderr
