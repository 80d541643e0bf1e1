"""Tables of a sweep: all settings, training times, and losses at equal L0."""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import pandas as pd

from crux.sae.sweeps.finished_runs import ASKED, LOSS, STEPS, FinishedRuns, differences, group_by_setting
from crux.sae.sweeps.l0_curves import L0Curve
from crux.sae.sweeps.matched import Ratio, ratio_of_means

MEASURED = {
    "L0": "l0",
    "CE loss increase": "ce_increase",
    "KL": "kl",
    "explained variance": "explained_variance",
    "loss recovered (mean)": "loss_recovered_mean",
    "norm ratio": "norm_ratio",
    "network's loss increase": "loss_increase",
    "output explained variance": "output_explained_variance",
    "features recovered": "recovered",
    "mean max cosine": "mean_max_cosine",
    "checks": "checks",
    "checks failed": "checks_failed",
    "alive": r"alive_heldout_\d+_frac",
}
"""Columns of the table, if runs have them → their metrics, as patterns. The rows from `network's loss increase` on are for toy models."""

RATE = "final/tokens_per_second"


def runs_table(runs: FinishedRuns) -> pd.DataFrame:
    """Return one row per setting: the mean over seeds, with the range."""
    varied = differences(runs)
    names = {t: [m for m in runs.metrics if re.fullmatch(f"final/{pattern}", m)] for t, pattern in MEASURED.items()}
    columns = {title: metrics for title, metrics in names.items() if metrics}
    rows = [
        [*setting, len(group), *(format_spread(group[names].stack().dropna().tolist()) for names in columns.values())]
        for setting, group in group_by_setting(runs.metrics, by=varied)
    ]
    return pd.DataFrame(rows, columns=[*varied, "seeds", *columns])


LOSS_SETTINGS = (LOSS, ASKED, STEPS)
"""Settings in which a run may differ from the e2e run with which its training time is compared."""


def times_table(runs: FinishedRuns) -> pd.DataFrame:
    """Return one row per setting: training tokens per second, and time per token as a ratio to loss=e2e, all else equal."""
    varied, rate = differences(runs), runs.metrics[RATE]
    shared = [varied[title] for title in varied if title not in LOSS_SETTINGS and not title.startswith("loss.")]
    e2e = rate.where(runs.settings[LOSS] == "e2e").groupby([*shared, runs.key("seed")]).transform("first")
    rows = []
    for setting, group in group_by_setting(pd.DataFrame({"rate": rate, "time": e2e / rate}), by=varied):
        rates, times = (group[name].dropna().tolist() for name in group)
        rows.append([*setting, f"{sum(rates) / len(rates):,.0f}" if rates else "–", format_spread(times)])
    return pd.DataFrame(rows, columns=[*varied, "tokens/s", "time / e2e"])


class Match(NamedTuple):
    """The CE loss increase of one loss at one L0."""

    curve: L0Curve
    l0: float
    values: pd.Series
    """The CE loss increase of each seed."""
    baseline: str
    """The loss that is the denominator of the ratio: the first of local, e2e, e2e_ds and others by name that is present."""
    ratio: Ratio | None
    """The ratio to the baseline; None for the baseline itself, and if no seed has both losses."""

    @property
    def place(self) -> dict[str, str]:
        """The settings that distinguish it from curves with which it is not compared, by column title."""
        architecture = self.curve.architecture
        return self.curve.place | ({"architecture": architecture} if architecture else {})


def match_losses(curves: Sequence[L0Curve], *, at: Sequence[float]) -> list[Match]:
    """Return the CE loss increase of every loss at each L0; empty if no loss has two sparsity settings or more."""
    matches: list[Match] = []
    for _, group in groupby(curves, key=lambda c: c.comparable):
        compared = list(group)
        if not any(curve.runs["seed"].duplicated().any() for curve in compared):
            continue
        for l0 in at:
            base = compared[0].interpolate("ce_increase", l0=l0)
            for curve in compared:
                values = curve.interpolate("ce_increase", l0=l0)
                seeds = sorted(values.index.intersection(base.index)) if curve is not compared[0] else []
                to_base = ratio_of_means(values[seeds].tolist(), base[seeds].tolist()) if seeds else None
                matches.append(Match(curve, l0, values, compared[0].loss, to_base))
    return matches


def matched_table(matches: Sequence[Match]) -> pd.DataFrame:
    """Return a table to read: one row per L0, one column per loss, then the ratios."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    increases, ratios = {}, {}
    for m in matches:
        row = rows.setdefault((*m.place.values(), f"{m.l0:g}"), m.place | {"L0": f"{m.l0:g}"})
        increases[f"CE loss increase, {m.curve.loss}"] = row[f"CE loss increase, {m.curve.loss}"] = format_spread(
            m.values.tolist()
        )
        if m.curve.loss != m.baseline:
            ratios[f"{m.curve.loss} / {m.baseline}"] = row[f"{m.curve.loss} / {m.baseline}"] = format_ratio(m.ratio)
    return pd.DataFrame(list(rows.values()), columns=[*matches[0].place, "L0", *increases, *ratios]).fillna("–")


def matched_numbers(matches: Sequence[Match]) -> pd.DataFrame:
    """Return a table to process: one row per L0 and loss, with all digits."""
    rows = []
    for m in matches:
        v, r = m.values.tolist(), m.ratio
        row = m.place | {"l0": f"{m.l0:g}", "loss": m.curve.loss, "seeds": len(v)}
        row |= {"ce_increase": sum(v) / len(v), "ce_increase_min": min(v), "ce_increase_max": max(v)} if v else {}
        row |= {"baseline": m.baseline}
        if r is not None:
            row |= {"ratio": r.of_means, "ratio_min": r.lowest, "ratio_max": r.highest}
            row |= dict(zip(("ratio_ci95_low", "ratio_ci95_high"), r.interval or (), strict=False))
        rows.append(row)
    measured = ["ce_increase", "ce_increase_min", "ce_increase_max", "baseline"]
    ratios = ["ratio", "ratio_min", "ratio_max", "ratio_ci95_low", "ratio_ci95_high"]
    return pd.DataFrame(rows, columns=[*matches[0].place, "l0", "loss", "seeds", *measured, *ratios])


def runs_numbers(runs: FinishedRuns) -> pd.DataFrame:
    """Return one row per run: its folder, all keys that differ between runs, and all metrics."""
    always = ("loss.name", "sparsity", "seed")
    keys = runs.keys.loc[:, [key in always or runs.keys[key].nunique() > 1 for key in runs.keys]]
    return pd.concat([keys.replace("None", ""), runs.metrics], axis=1).reset_index()


def format_spread(values: Sequence[float]) -> str:
    """Return `mean (lowest to highest)` as text; a dash if there are no values."""
    if not values:
        return "–"
    mean = sum(values) / len(values)
    return f"{mean:.3g}" if len(values) == 1 else f"{mean:.3g} ({min(values):.3g} to {max(values):.3g})"


def format_ratio(ratio: Ratio | None) -> str:
    """Return `ratio (lowest to highest; 95 %: low to high)` as text; a dash if there is no ratio."""
    if ratio is None:
        return "–"
    words = [f"{ratio.lowest:.3g} to {ratio.highest:.3g}"] if ratio.lowest != ratio.highest else []
    words += [f"95 %: {ratio.interval[0]:.3g} to {ratio.interval[1]:.3g}"] if ratio.interval is not None else []
    return f"{ratio.of_means:.3g}" + (f" ({'; '.join(words)})" if words else "")
