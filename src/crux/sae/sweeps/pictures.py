"""A sweep's figures, from its curves: what is drawn, from which runs."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from matplotlib.figure import Figure

from crux.sae.figures.downstream_by_loss import Later, downstream_by_loss
from crux.sae.figures.pareto import Front, pareto
from crux.sae.sweeps.curves import Curve
from crux.sae.sweeps.runs import ASKED, SETTINGS, Run
from crux.subjects.hooks import parse_hook


def pictures(curves: Sequence[Curve], *, at: Sequence[float]) -> dict[str, Figure]:
    """Name → figure; those that the runs have the numbers for.

    Args:
        at: L0 values at which losses may be compared.
    """
    drawn = {"pareto_l0": pareto(_fronts(curves, "l0"), x="L0 (latents per token)")}
    alive = sorted({m for c in curves for m in _metrics(c) if re.fullmatch(r"alive_heldout_\d+", m)})
    if len(alive) == 1:  # alive in how many tokens differs, else, and cannot share an axis
        n_tokens = int(alive[0].rpartition("_")[2])
        label = f"alive latents (fire in {n_tokens:,} held-out tokens)"
        drawn["pareto_alive"] = pareto(_fronts(curves, alive[0]), x=label)
    lines = _later(curves, at=at)
    if lines:
        n_layers = max(int(line.blocks.max()) for line in lines)
        drawn["downstream"] = downstream_by_loss(lines, n_layers=n_layers)
    return drawn


def _metrics(curve: Curve) -> set[str]:
    return {name.removeprefix("final/") for runs in curve.runs.values() for run in runs for name in run.metrics}


def _panel(curve: Curve) -> str:
    return ", ".join(value if "hook" in title else f"{title} {value}" for title, value in curve.place.items())


def _fronts(curves: Sequence[Curve], metric: str) -> list[Front]:
    def pair(run: Run) -> tuple[float, float]:
        return run.metrics[f"final/{metric}"], run.metrics["final/ce_increase"]

    found: list[Front] = []
    for curve in curves:
        seeds = [np.array([pair(run) for run in _dense_last(runs)]) for _, runs in sorted(curve.runs.items())]
        means = [np.mean([pair(run) for run in runs], axis=0) for runs in _by_asked(curve).values()]
        found.append(Front(_panel(curve), curve.loss, curve.architecture, seeds, np.array(means)))
    return found


def _dense_last(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: run.metrics["final/l0"])


def _by_asked(curve: Curve) -> dict[str, list[Run]]:
    """What was asked for → its runs, one a seed; in the order of their mean L0."""
    found: dict[str, list[Run]] = defaultdict(list)
    for run in (run for _, runs in sorted(curve.runs.items()) for run in runs):
        found[SETTINGS[ASKED](run.config)].append(run)
    return dict(sorted(found.items(), key=lambda item: _mean_l0(item[1])))


def _mean_l0(runs: Sequence[Run]) -> float:
    return float(np.mean([run.metrics["final/l0"] for run in runs]))


def _later(curves: Sequence[Curve], *, at: Sequence[float]) -> list[Later]:
    """Every loss's downstream reconstruction, at the L0 that most of the compared curves reach (the first of those);
    where a curve does not reach it, of its runs with the nearest mean L0. The label says which."""
    found: list[Later] = []
    for _, group in groupby(curves, key=lambda c: c.comparable):
        compared = [(c, later) for c in group if (later := _residuals(c)) is not None]
        if not compared:
            continue
        reached = Counter(l0 for l0 in at for c, _ in compared if c.at("ce_increase", l0=l0).keys() == c.runs.keys())
        l0s = sorted(p.l0 for c, _ in compared for points in c.points("ce_increase").values() for p in points)
        l0 = max(at, key=lambda value: (reached[value], -at.index(value))) if reached else l0s[len(l0s) // 2]
        for curve, (own, ks) in compared:
            mse = ["mse", *(f"downstream_mse/{k}" for k in ks)]
            ev = ["explained_variance", *(f"downstream_ev/{k}" for k in ks)]
            if curve.at("ce_increase", l0=l0).keys() == curve.runs.keys():
                where = f"L0 {l0:g}"
                values = [np.array([list(curve.at(m, l0=l0).values()) for m in names]).T for names in (mse, ev)]
            else:
                asked, runs = min(_by_asked(curve).items(), key=lambda item: abs(_mean_l0(item[1]) - l0))
                where = f"L0 {_mean_l0(runs):.3g} ({asked})"
                values = [np.array([[run.metrics[f"final/{m}"] for m in names] for run in runs]) for names in (mse, ev)]
            panel = ", ".join(word for word in (curve.architecture, _panel(curve)) if word)
            found.append(Later(panel, f"{curve.loss}, {where}", curve.loss, own, np.array([own, *ks], float), *values))
    return found


def _residuals(curve: Curve) -> tuple[int, list[int]] | None:
    """The k of the SAE's own place, and those behind it that every run has; None where a run lacks the numbers."""
    runs = [run for runs in curve.runs.values() for run in runs]
    hook = runs[0].config.get("hook_point")
    if hook is None or any("final/mse" not in run.metrics for run in runs):
        return None
    place = parse_hook(runs[0].config.get("sae", {}).get("output_hook") or hook)
    own = place.layer + (place.kind == "resid_post")
    pattern = re.compile(r"final/downstream_mse/(\d+)")
    there = [{int(m[1]) for name in run.metrics if (m := pattern.fullmatch(name))} for run in runs]
    ks = sorted(k for k in set.intersection(*there) if k > own)
    return (own, ks) if ks else None
