"""The result of an experiment: metrics, figures, and checks of values against the range in which they should be."""

import math
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

    metrics: Mapping[str, float | None]
    """Values by name; `final/` is put in front of the name in metrics.json. A value that does not exist, such as the crossing of curves
    that do not cross, is None and left out there. NaN is an error."""
    checks: Sequence[Check]
    figures: Mapping[str, Figure]
    """Figures by the name of their file, without the extension."""
    arrays: Mapping[str, Tensor]
    """The data from which the figures are drawn."""
    report: str
    """A few lines or a table in Markdown, for people; empty if the checks suffice."""
    summary: str | None = None
    """A few lines that are printed instead of the report; None: the report itself is printed."""


def finite_or_none(value: float) -> float | None:
    """Return a value, or None for one that does not exist: the quotient or the statistic is NaN or infinite."""
    return value if math.isfinite(value) else None
