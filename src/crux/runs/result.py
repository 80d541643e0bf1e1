"""What an experiment hands back: numbers, figures, and what should have come out beside what did."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from torch import Tensor


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
