"""The result of an experiment: metrics, figures, and checks of values against the range in which they should be."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from torch import Tensor


class Check(NamedTuple):
    """A value and the range in which it should be."""

    what: str
    """Description of the value."""
    value: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """True if the value is in the range, ends included."""
        return self.low <= self.value <= self.high


class Result(NamedTuple):
    """The result of an experiment."""

    metrics: dict[str, float]
    """Values by name; `final/` is put in front of the name in metrics.json."""
    checks: Sequence[Check]
    figures: Mapping[str, Figure]
    """Figures by the name of their file, without the extension."""
    arrays: Mapping[str, Tensor]
    """The data from which the figures are drawn."""
    report: str
    """A few lines or a table in Markdown, for people; empty if the checks suffice."""
