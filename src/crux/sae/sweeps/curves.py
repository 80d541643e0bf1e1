"""A sweep's runs as curves over L0: those of a curve differ in how sparse they were to be, and in the seed, and in nothing else."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from crux.sae.sweeps.matched import Point, at_l0
from crux.sae.sweeps.runs import ARCHITECTURE, ASKED, LOSS, Run, rank, settings

SPARSITIES = (ASKED, "sparsity", "sae.k", "target_l0")


class Curve(NamedTuple):
    """The runs of a loss at one place."""

    place: dict[str, str]
    """What of the sweep's settings it shares with the curves that it may be compared with: hook point, steps, ..."""
    architecture: str
    loss: str
    runs: dict[int, list[Run]]
    """By seed."""

    def points(self, metric: str) -> dict[int, list[Point]]:
        """Seed → (L0, `final/<metric>`) of its runs, those that have it."""
        name = f"final/{metric}"
        found = {
            seed: [Point(r.metrics["final/l0"], r.metrics[name]) for r in runs if name in r.metrics]
            for seed, runs in self.runs.items()
        }
        return {seed: points for seed, points in found.items() if points}

    def at(self, metric: str, *, l0: float) -> dict[int, float]:
        """Seed → the metric at an L0, for the seeds whose runs lie on both sides of it."""
        found = {seed: at_l0(points, l0=l0) for seed, points in self.points(metric).items() if len(points) > 1}
        return {seed: value for seed, value in found.items() if value is not None}

    @property
    def comparable(self) -> tuple[tuple[str, ...], str]:
        """Curves that agree in this are compared."""
        return tuple(self.place.values()), self.architecture


def curves(runs: Sequence[Run]) -> list[Curve]:
    """Every curve of a sweep, runs without an L0 left out (language models, several SAEs in one run)."""
    judged = [run for run in runs if {"final/l0", "final/ce_increase"} <= run.metrics.keys()]
    told = settings(judged) if judged else []
    of_losses = {key: defaultdict[str, set[str]](set) for setting in told for key in setting if key.startswith("loss.")}
    for run, setting in zip(judged, told, strict=True):
        for key, values in of_losses.items():
            values[run.loss].add(setting[key])
    found: dict[tuple[str, ...], Curve] = {}
    for run, setting in zip(judged, told, strict=True):
        place = {k: v for k, v in setting.items() if k not in (LOSS, ARCHITECTURE, *SPARSITIES) and k not in of_losses}
        own = [f"{key}={setting[key]}" for key, values in of_losses.items() if len(values[run.loss]) > 1]
        loss, architecture = " ".join([run.loss, *own]), setting.get(ARCHITECTURE, "")
        curve = found.setdefault((*place.values(), architecture, loss), Curve(place, architecture, loss, {}))
        curve.runs.setdefault(run.seed, []).append(run)
    return sorted(found.values(), key=lambda c: (_sortable(c.place.values()), c.architecture, rank(c.loss)))


def _sortable(values: object) -> list[tuple[int, str]]:
    """`steps` 300 before 1200, and `blocks.2` before `blocks.10`."""
    words = [word for value in values for word in str(value).split(".")]  # pyright: ignore[reportGeneralTypeIssues]
    return [(int(word), "") if word.isdigit() else (-1, word) for word in words]
