"""Tables of a sweep: all settings, training times, and losses at equal L0."""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import pandas as pd

from crux.sae.sweeps.finished_runs import LOSS, SPARSITY_SETTING, STEPS, FinishedRuns, differences, group_by_setting
from crux.sae.sweeps.l0_curves import L0Curve
from crux.sae.sweeps.matched import Ratio, ratio_of_means

METRIC_COLUMNS = {
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
    "alive (share)": r"alive_heldout_\d+_frac",
}
"""Columns of the table of runs: title → pattern of the metric's name. A column without values is left out; those from
`network's loss increase` to `checks failed` are for toy models."""

RATE = "final/tokens_per_second"


def runs_table(runs: FinishedRuns) -> pd.DataFrame:
    """Return one row per setting: the mean over seeds, with the range."""
    varied = differences(runs)
    metrics = {
        title: [name for name in runs.metrics if re.fullmatch(f"final/{pattern}", name)]
        for title, pattern in METRIC_COLUMNS.items()
    }
    columns = {title: names for title, names in metrics.items() if names}
    rows = [
        [*setting, len(group), *(format_spread(group[names].stack().dropna().tolist()) for names in columns.values())]
        for setting, group in group_by_setting(runs.metrics, by=varied)
    ]
    return pd.DataFrame(rows, columns=[*varied, "seeds", *columns])


FREE_SETTINGS = (LOSS, SPARSITY_SETTING, STEPS)
"""Settings in which a run may differ from the e2e run with which its training time is compared."""


def times_table(runs: FinishedRuns) -> pd.DataFrame:
    """Return one row per setting: training tokens per second, and time per token divided by that of loss=e2e, all else equal."""
    varied, rate = differences(runs), runs.metrics[RATE]
    equal_settings = [varied[title] for title in varied if title not in FREE_SETTINGS and not title.startswith("loss.")]
    e2e = rate.where(runs.settings[LOSS] == "e2e").groupby([*equal_settings, runs.key("seed")]).transform("first")
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
    def common_settings(self) -> dict[str, str]:
        """The settings that the compared curves have in common, by column title."""
        architecture = self.curve.architecture
        return self.curve.common_settings | ({"architecture": architecture} if architecture else {})


def match_losses(curves: Sequence[L0Curve], *, at: Sequence[float]) -> list[Match]:
    """Return the CE loss increase of every loss at each L0; empty if no loss has two sparsity settings or more."""
    matches: list[Match] = []
    for _, group in groupby(curves, key=lambda curve: curve.comparison_key):
        compared = list(group)
        if not any(curve.runs["seed"].duplicated().any() for curve in compared):
            continue  # no seed has two runs to interpolate between
        for l0 in at:
            baseline = compared[0].interpolate("ce_increase", l0=l0)
            for curve in compared:
                values = curve.interpolate("ce_increase", l0=l0)
                seeds = sorted(values.index.intersection(baseline.index)) if curve is not compared[0] else []
                to_base = ratio_of_means(values[seeds].tolist(), baseline[seeds].tolist()) if seeds else None
                matches.append(Match(curve, l0, values, compared[0].loss, to_base))
    return matches


def matched_table(matches: Sequence[Match]) -> pd.DataFrame:
    """Return a table to read: one row per L0, one column per loss, then the ratios."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    increases: list[str] = []
    ratios: list[str] = []
    for match in matches:
        settings, l0 = match.common_settings, f"{match.l0:g}"
        row = rows.setdefault((*settings.values(), l0), settings | {"L0": l0})
        title = f"CE loss increase, {match.curve.loss}"
        increases.append(title)
        row[title] = format_spread(match.values.tolist())
        if match.curve.loss != match.baseline:
            title = f"{match.curve.loss} / {match.baseline}"
            ratios.append(title)
            row[title] = format_ratio(match.ratio)
    columns = dict.fromkeys([*matches[0].common_settings, "L0", *increases, *ratios])  # each title once
    return pd.DataFrame(list(rows.values()), columns=list(columns)).fillna("–")


def matched_numbers(matches: Sequence[Match]) -> pd.DataFrame:
    """Return a table to process: one row per L0 and loss, with all digits."""
    rows = []
    for match in matches:
        values, ratio = match.values.tolist(), match.ratio
        row = match.common_settings | {"l0": f"{match.l0:g}", "loss": match.curve.loss, "seeds": len(values)}
        if values:
            mean = sum(values) / len(values)
            row |= {"ce_increase": mean, "ce_increase_min": min(values), "ce_increase_max": max(values)}
        row |= {"baseline": match.baseline}
        if ratio is not None:
            row |= {"ratio": ratio.of_means, "ratio_min": ratio.lowest, "ratio_max": ratio.highest}
            if ratio.interval is not None:
                row |= dict(zip(("ratio_ci95_low", "ratio_ci95_high"), ratio.interval, strict=True))
        rows.append(row)
    measured = ["ce_increase", "ce_increase_min", "ce_increase_max", "baseline"]
    ratios = ["ratio", "ratio_min", "ratio_max", "ratio_ci95_low", "ratio_ci95_high"]
    return pd.DataFrame(rows, columns=[*matches[0].common_settings, "l0", "loss", "seeds", *measured, *ratios])


def runs_numbers(runs: FinishedRuns) -> pd.DataFrame:
    """Return one row per run: its folder, all keys that differ between runs, and all metrics."""
    main_keys = ("loss.name", "sparsity", "seed")  # columns of every runs.csv, also if they do not differ
    keys = runs.keys.loc[:, [key in main_keys or runs.keys[key].nunique() > 1 for key in runs.keys]]
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
