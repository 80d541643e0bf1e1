"""The rule that a run with a final metric that is not finite has failed."""

import math
from collections.abc import Mapping

from crux.config.errors import UserError

MAX_NAMES = 4
"""Number of metrics that the error names."""


class NonFiniteMetricsError(UserError):
    """The error of a run of which final metrics are not finite numbers."""

    def __init__(self, metrics: Mapping[str, float]) -> None:
        bad = {name.removeprefix("final/"): value for name, value in metrics.items() if not math.isfinite(value)}
        named = [f"{name} is {value}" for name, value in list(bad.items())[:MAX_NAMES]]
        more = [f"{len(bad) - MAX_NAMES} more"] if len(bad) > MAX_NAMES else []
        # these do not depend on what was trained
        cause = (
            "the predictions of the unmodified model are not finite: look for the cause in its weights or its precision"
        )
        advice = cause if "ce_clean" in bad else "what was trained has diverged: try a lower optimizer.lr"
        super().__init__(f"final metrics are not finite numbers ({', '.join(named + more)}); {advice}")


def find_non_finite(metrics: Mapping[str, float]) -> NonFiniteMetricsError | None:
    """Return the error of a run with these final metrics; None if all of them are finite."""
    return None if all(map(math.isfinite, metrics.values())) else NonFiniteMetricsError(metrics)
