"""What an experiment hands back: numbers, figures, and what should have come out beside what did."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypedDict

from matplotlib.figure import Figure
from torch import Tensor

from crux.schema import Config
from crux.toy.program import Program, Trained


class Thresholds(TypedDict):
    """Of `geometry_report`."""

    living: float
    tau: float
    tolerance: float


THRESHOLDS = Thresholds(living=0.1, tau=0.15, tolerance=0.15)
"""For trained weights, which carry some noise."""


class Check(NamedTuple):
    """A number and the band that it should lie in."""

    what: str
    value: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        return self.low <= self.value <= self.high


class Result(NamedTuple):
    """What was found."""

    metrics: dict[str, float]
    """By name, without `final/`."""
    checks: Sequence[Check]
    figures: Mapping[str, Figure]
    """By the name of their files."""
    arrays: Mapping[str, Tensor]
    """What the figures were drawn from."""
    report: str
    """For people, a few lines or a table in Markdown; empty where the checks say it all."""


class Experiment(Protocol):
    """A module in this folder."""

    def programs(self, config: Config) -> list[Program]:
        """What is to be trained, one after the other."""
        ...

    def result(self, config: Config, trained: Sequence[Trained]) -> Result:
        """What came of it."""
        ...
