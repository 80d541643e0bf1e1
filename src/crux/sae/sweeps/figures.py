"""A sweep's figures, from its curves: what is drawn, from which runs."""

import re
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from crux.sae.figures.downstream_by_loss import DownstreamCurve, plot_downstream_by_loss
from crux.sae.figures.pareto import Front, plot_pareto
from crux.sae.sweeps.finished_runs import ASKED
from crux.sae.sweeps.l0_curves import L0Curve
from crux.subjects.hooks import parse_hook


def plot_sweep(curves: Sequence[L0Curve], *, at: Sequence[float]) -> dict[str, Figure]:
    """Return the figures that the runs have the numbers for, by name.

    Args:
        at: L0 values at which losses may be compared.
    """
    drawn = {"pareto_l0": plot_pareto(_fronts(curves, "l0"), x="L0 (latents per token)")}
    alive = {m for c in curves for m in c.runs.dropna(axis=1, how="all") if re.fullmatch(r"alive_heldout_\d+", m)}
    if len(alive) == 1:  # otherwise alive in how many tokens differs, and cannot share an axis
        (metric,) = alive
        label = f"alive latents (fire in {int(metric.rpartition('_')[2]):,} held-out tokens)"
        drawn["pareto_alive"] = plot_pareto(_fronts(curves, metric), x=label)
    lines = _later(curves, at=at)
    if lines:
        n_layers = max(int(line.blocks.max()) for line in lines)
        drawn["downstream"] = plot_downstream_by_loss(lines, n_layers=n_layers)
    return drawn


def _panel(curve: L0Curve) -> str:
    return ", ".join(value if "hook" in title else f"{title} {value}" for title, value in curve.place.items())


def _fronts(curves: Sequence[L0Curve], metric: str) -> list[Front]:
    """Return each curve's CE loss increase against a metric, without the runs that do not have it."""
    found, pair = [], [metric, "ce_increase"]
    for curve in curves:
        there = curve._replace(runs=curve.runs.dropna(subset=[metric]))
        seeds = [runs.sort_values("l0", kind="stable")[pair].to_numpy() for _, runs in there.runs.groupby("seed")]
        if seeds:
            found.append(Front(_panel(curve), curve.loss, curve.architecture, seeds, there.means()[pair].to_numpy()))
    return found


def _later(curves: Sequence[L0Curve], *, at: Sequence[float]) -> list[DownstreamCurve]:
    """Return every loss's downstream reconstruction, at the L0 that most of the compared curves reach (the first of those).

    If a curve does not reach it, the values are of its runs with the nearest mean L0. The label says which.
    """
    found: list[DownstreamCurve] = []
    for _, group in groupby(curves, key=lambda c: c.comparable):
        compared = [(curve, later) for curve in group if (later := _residuals(curve)) is not None]
        if not compared:
            continue
        reached = {l0: n for l0 in at if (n := sum(curve.reaches(l0) for curve, _ in compared))}
        l0s = sorted(pd.concat([curve.runs["l0"] for curve, _ in compared]))
        l0 = max(reached, key=lambda value: reached[value]) if reached else l0s[len(l0s) // 2]
        for curve, (own, ks) in compared:
            mse = ["mse", *(f"downstream_mse/{k}" for k in ks)]
            ev = ["explained_variance", *(f"downstream_ev/{k}" for k in ks)]
            if curve.reaches(l0):
                where, seeds = f"L0 {l0:g}", pd.DataFrame({m: curve.interpolate(m, l0=l0) for m in (*mse, *ev)})
            else:
                means = curve.means()["l0"]
                asked = (means - l0).abs().idxmin()
                where, seeds = f"L0 {means[asked]:.3g} ({asked})", curve.runs[curve.runs[ASKED] == asked]
            panel = ", ".join(word for word in (curve.architecture, _panel(curve)) if word)
            blocks, values = np.array([own, *ks], float), (np.array(seeds[names]) for names in (mse, ev))
            found.append(DownstreamCurve(panel, f"{curve.loss}, {where}", curve.loss, own, blocks, *values))
    return found


def _residuals(curve: L0Curve) -> tuple[int, list[int]] | None:
    """Return the k of the SAE's own place, and those behind it that every run has; None if a run lacks the numbers."""
    whole, hook = curve.runs.dropna(axis=1), curve.runs["hook"].iloc[0]
    if hook == "None" or "mse" not in whole:
        return None
    place = parse_hook(hook)
    own = place.layer + (place.kind == "resid_post")
    ks = sorted(int(m[1]) for name in whole if (m := re.fullmatch(r"downstream_mse/(\d+)", name)) and int(m[1]) > own)
    return (own, ks) if ks else None
