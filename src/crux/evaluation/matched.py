"""Comparing losses at equal L0: each run is a point (L0, CE loss increase), each seed's runs a curve."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Point(NamedTuple):
    """One judged SAE."""

    l0: float
    """Latents a token."""
    ce_increase: float
    """Nats a token."""


def ce_increase_at(points: Sequence[Point], *, l0: float) -> float | None:
    """CE loss increase at an L0, linear between the two neighbouring points; None outside their range.

    The paper interpolates in the same way (its `plot_performance.py`; reference §3, Fig. 1).
    """
    known = sorted(points)
    xs, ys = [p.l0 for p in known], [p.ce_increase for p in known]
    if not known or not xs[0] <= l0 <= xs[-1]:
        return None
    return float(np.interp(l0, xs, ys))
