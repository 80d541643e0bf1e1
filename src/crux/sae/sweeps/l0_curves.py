"""The runs of a sweep as curves over L0; the runs of one curve only differ in the sparsity setting and the seed."""

from typing import NamedTuple

import pandas as pd

from crux.sae.sweeps.finished_runs import (
    ARCHITECTURE,
    LOSS,
    SPARSITY_SETTING,
    FinishedRuns,
    differences,
    group_by_setting,
    loss_order,
)
from crux.sae.sweeps.matched import interpolate_at_l0

SPARSITY_COLUMNS = (SPARSITY_SETTING, "sparsity", "sae.k", "target_l0")
"""Settings in which the runs of one curve may differ."""


class L0Curve(NamedTuple):
    """The runs of one loss and architecture at one hook point, with several sparsity settings and seeds."""

    common_settings: dict[str, str]
    """The settings that curves must have in common to be compared, by column title: hook point, steps, ..."""
    architecture: str
    """Empty if all runs of the sweep have the same architecture."""
    loss: str
    """Name of the loss, followed by the coefficients in which runs of this loss differ."""
    runs: pd.DataFrame
    """One row per run: `seed`, the sparsity setting, `hook` (the hook point that the SAE writes), and the metrics without `final/`."""

    def interpolate(self, metric: str, *, l0: float) -> pd.Series:
        """Return the metric at an L0 for each seed that has runs on both sides of it."""
        seeds = self.runs.dropna(subset=[metric]).groupby("seed", sort=False)
        values = {
            seed: interpolate_at_l0(runs["l0"].tolist(), runs[metric].tolist(), l0=l0)
            for seed, runs in seeds
            if len(runs) > 1
        }
        return pd.Series(values, dtype=float).dropna()

    def reaches(self, l0: float) -> bool:
        """Return whether every seed has runs on both sides of an L0."""
        return len(self.interpolate("ce_increase", l0=l0)) == self.runs["seed"].nunique()

    def means(self) -> pd.DataFrame:
        """Return the mean metrics over seeds for each sparsity setting, ordered by L0."""
        return pd.DataFrame(self.runs.groupby(SPARSITY_SETTING, sort=False).mean(numeric_only=True)).sort_values(
            "l0", kind="stable"
        )

    @property
    def comparison_key(self) -> tuple[str, ...]:
        """The settings that must be equal for two curves to be compared."""
        return (*self.common_settings.values(), self.architecture)


def build_curves(runs: FinishedRuns) -> list[L0Curve]:
    """Return all curves of a sweep, ignoring runs without an L0 and CE loss increase (toy models, pretraining)."""
    runs = runs.with_metrics("final/l0", "final/ce_increase")
    if runs.metrics.empty:
        return []
    columns, losses = differences(runs), runs.settings[LOSS]
    names, coefficients = losses, [key for key in columns if key.startswith("loss.")]
    for key in coefficients:  # a coefficient that differs between runs of one loss is part of its name
        names = names.where(columns[key].groupby(losses).transform("nunique") == 1, names + f" {key}=" + columns[key])
    common = columns.drop(columns=[LOSS, ARCHITECTURE, *SPARSITY_COLUMNS, *coefficients], errors="ignore")
    hook, output = runs.key("hook_point"), runs.key("sae.output_hook")
    rows = runs.metrics.rename(columns=lambda name: name.removeprefix("final/")).assign(
        seed=runs.key("seed").astype(int),
        hook=hook.where(output == "None", output),
        **{SPARSITY_SETTING: runs.settings[SPARSITY_SETTING]},
    )
    groups = common.assign(architecture=columns.get(ARCHITECTURE, ""), loss=names)
    curves = [
        L0Curve(dict(zip(common, values, strict=True)), architecture, loss, group)
        for (*values, architecture, loss), group in group_by_setting(rows, by=groups)
    ]
    return sorted(curves, key=_curve_order)


def _curve_order(curve: L0Curve) -> tuple[list[list[tuple[int, str]]], str, tuple[int, str]]:
    """Return the sort key of a curve, which keeps the curves together that are compared."""
    return (
        [_numeric_order(value) for value in curve.common_settings.values()],
        curve.architecture,
        loss_order(curve.loss),
    )


def _numeric_order(value: str) -> list[tuple[int, str]]:
    """Return a sort key with which 300 is before 1200, and `blocks.2` before `blocks.10`."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in value.split(".")]
