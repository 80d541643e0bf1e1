"""The short form of the campaign of tracking faults: faults of the database, which need no server."""

import json
import subprocess
import sys

import pytest

from tests.campaigns.tracking_faults import KINDS

SHORT = [("is deleted", "middle", "stays"), ("is full", "end", "stays"), ("is locked", "middle", "SIGTERM")]

PROGRAM = """
import json, sys
from tests.campaigns.outcomes import Outcomes
from tests.campaigns.tracking_faults import try_cases
outcomes = Outcomes("tracking faults")
try_cases(outcomes, json.loads(sys.argv[1]), seed=0)
print(outcomes.table())
sys.exit(1 if outcomes.shortfalls else 0)
"""
"""One process for all cases, since the database with which they begin takes many seconds to create."""


@pytest.mark.slow
def test_database_faults_lose_nothing() -> None:
    kinds = [(fault and fault.name, moment, then) for fault, moment, then in KINDS]
    numbers = json.dumps([kinds.index(kind) for kind in SHORT])
    campaign = subprocess.run([sys.executable, "-c", PROGRAM, numbers], capture_output=True, text=True, timeout=300)
    assert campaign.returncode == 0, campaign.stdout + campaign.stderr
    assert "3 cases, 0 fell short" in campaign.stdout
