"""What a toy experiment is: programs to train, and a result."""

from collections.abc import Sequence
from typing import Protocol, TypedDict

from crux.config.schema import Config
from crux.runs.result import Check as Check
from crux.runs.result import Result as Result
from crux.toy.program import Program, Trained


class Thresholds(TypedDict):
    """Of `geometry_report`."""

    living: float
    tau: float
    tolerance: float


THRESHOLDS = Thresholds(living=0.1, tau=0.15, tolerance=0.15)
"""For trained weights, which carry some noise."""


class Experiment(Protocol):
    """A module in this folder."""

    def programs(self, config: Config) -> list[Program]:
        """What is to be trained, one after the other."""
        ...

    def result(self, config: Config, trained: Sequence[Trained]) -> Result:
        """What came of it."""
        ...
