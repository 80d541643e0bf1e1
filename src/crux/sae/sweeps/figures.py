"""The figures of a sweep, plotted from its curves."""

import re
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from crux.sae.figures.downstream_by_loss import DownstreamCurve, plot_downstream_by_loss
from crux.sae.figures.pareto import Front, plot_pareto
from crux.sae.sweeps.finished_runs import SPARSITY_SETTING
from crux.sae.sweeps.l0_curves import L0Curve
from crux.subjects.hooks import parse_hook


def plot_sweep(curves: Sequence[L0Curve], *, at: Sequence[float]) -> dict[str, Figure]:
    """Return the figures for which the runs have the metrics, by name.

    Args:
        at: L0 values at which losses may be compared.
    """
    figures = {"pareto_l0": plot_pareto(_make_fronts(curves, "l0"), x="L0 (latents per token)")}
    metrics = {name for curve in curves for name in curve.runs.dropna(axis=1, how="all")}
    alive_metrics = [name for name in metrics if re.fullmatch(r"alive_heldout_\d+", name)]
    if len(alive_metrics) == 1:  # otherwise latents are alive in different numbers of tokens, which cannot be compared
        (metric,) = alive_metrics
        label = f"alive latents (fire in {int(metric.rpartition('_')[2]):,} held-out tokens)"
        figures["pareto_alive"] = plot_pareto(_make_fronts(curves, metric), x=label)
    downstream = _make_downstream_curves(curves, at=at)
    if downstream:
        n_layers = max(int(curve.blocks.max()) for curve in downstream)
        figures["downstream"] = plot_downstream_by_loss(downstream, n_layers=n_layers)
    return figures


def _panel_title(curve: L0Curve) -> str:
    """Return the settings that distinguish a panel from others; a hook point is clear without the word."""
    return ", ".join(value if "hook" in title else f"{title} {value}" for title, value in curve.common_settings.items())


def _make_fronts(curves: Sequence[L0Curve], metric: str) -> list[Front]:
    """Return the CE loss increase of each curve against a metric, without runs that do not have the metric."""
    fronts, axes = [], [metric, "ce_increase"]
    for curve in curves:
        with_metric = curve._replace(runs=curve.runs.dropna(subset=[metric]))
        seeds = [runs.sort_values("l0", kind="stable")[axes].to_numpy() for _, runs in with_metric.runs.groupby("seed")]
        if seeds:
            fronts.append(
                Front(_panel_title(curve), curve.loss, curve.architecture, seeds, with_metric.means()[axes].to_numpy())
            )
    return fronts


def _make_downstream_curves(curves: Sequence[L0Curve], *, at: Sequence[float]) -> list[DownstreamCurve]:
    """Return the downstream reconstruction of every loss, at the (first) L0 that most of the compared curves reach.

    For a curve that does not reach it, the runs with the nearest mean L0 are used. The label gives the L0.
    """
    downstream_curves: list[DownstreamCurve] = []
    for _, group in groupby(curves, key=lambda curve: curve.comparison_key):
        compared = [(curve, later) for curve in group if (later := _find_residuals(curve)) is not None]
        if not compared:
            continue
        n_reaching = {l0: n for l0 in at if (n := sum(curve.reaches(l0) for curve, _ in compared))}
        l0s = sorted(pd.concat([curve.runs["l0"] for curve, _ in compared]))
        # if no curve reaches any of these L0 values, the median L0 of the runs is close to as many runs as possible
        l0 = max(n_reaching, key=lambda value: n_reaching[value]) if n_reaching else l0s[len(l0s) // 2]
        for curve, (at_sae, ks) in compared:
            mse = ["mse", *(f"downstream_mse/{k}" for k in ks)]
            ev = ["explained_variance", *(f"downstream_ev/{k}" for k in ks)]
            if curve.reaches(l0):
                label, seeds = f"L0 {l0:g}", pd.DataFrame({m: curve.interpolate(m, l0=l0) for m in (*mse, *ev)})
            else:
                means = curve.means()["l0"]
                setting = (means - l0).abs().idxmin()
                label = f"L0 {means[setting]:.3g} ({setting})"
                seeds = curve.runs[curve.runs[SPARSITY_SETTING] == setting]
            panel = ", ".join(word for word in (curve.architecture, _panel_title(curve)) if word)
            blocks, values = np.array([at_sae, *ks], float), (np.array(seeds[names]) for names in (mse, ev))
            downstream_curves.append(
                DownstreamCurve(panel, f"{curve.loss}, {label}", curve.loss, at_sae, blocks, *values)
            )
    return downstream_curves


def _find_residuals(curve: L0Curve) -> tuple[int, list[int]] | None:
    """Return the k of the SAE's hook point, and the later k for which every run has metrics; None if a metric is missing."""
    complete, hook = curve.runs.dropna(axis=1), curve.runs["hook"].iloc[0]
    if hook == "None" or "mse" not in complete:
        return None
    parsed = parse_hook(hook)
    at_sae = parsed.layer + (parsed.kind == "resid_post")
    ks = sorted(
        int(m[1]) for name in complete if (m := re.fullmatch(r"downstream_mse/(\d+)", name)) and int(m[1]) > at_sae
    )
    return (at_sae, ks) if ks else None
