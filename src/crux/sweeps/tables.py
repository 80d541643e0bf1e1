"""A sweep's runs as tables: side by side, and at matched L0."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from crux.evaluation.matched import Point, ce_increase_at
from crux.sweeps.runs import Run, settings

MEASURED = {
    "L0": "l0",
    "CE loss increase": "ce_increase",
    "KL": "kl",
    "explained variance": "explained_variance",
    "loss recovered (mean)": "loss_recovered_mean",
    "norm ratio": "norm_ratio",
}
"""Columns of the table, and the metrics in them."""


def runs_table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """A line a setting: mean over seeds, with the range; time per training token as a ratio to loss=e2e, all else equal."""
    told = settings(runs)
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, setting in enumerate(told):
        groups[tuple(setting.values())].append(i)
    header = [*told[0], "seeds", *MEASURED, "alive", "time / e2e"]
    rows: list[list[str]] = []
    for setting, members in groups.items():
        group = [runs[i] for i in members]
        measured = [[r.metrics[f"final/{k}"] for r in group if f"final/{k}" in r.metrics] for k in MEASURED.values()]
        alive = [v for r in group for k, v in r.metrics.items() if re.fullmatch(r"final/alive_heldout_\d+_frac", k)]
        times = [t for i in members if (t := _time(i, runs, told)) is not None]
        rows.append([*setting, str(len(group)), *(spread(v) for v in [*measured, alive, times])])
    return header, rows


OF_THE_LOSS = ("loss", "asked for", "steps")
"""Settings in which a run may differ from the e2e run that it is timed against."""


def _time(i: int, runs: Sequence[Run], told: Sequence[Mapping[str, str]]) -> float | None:
    """A run's time per token over that of the e2e run of its seed and its other settings, where both are known."""

    def rest(j: int) -> dict[str, str]:
        return {k: v for k, v in told[j].items() if k not in OF_THE_LOSS and not k.startswith("loss.")}

    rate = "final/tokens_per_second"
    rivals = [
        r.metrics[rate]
        for j, r in enumerate(runs)
        if r.loss == "e2e" and r.seed == runs[i].seed and rest(j) == rest(i) and rate in r.metrics
    ]
    return rivals[0] / runs[i].metrics[rate] if rivals and rate in runs[i].metrics else None


def matched_table(runs: Sequence[Run], *, at: Sequence[float]) -> tuple[list[str], list[list[str]]]:
    """CE loss increase at each L0 by loss, and its ratio to the local loss, each the mean over seeds with the range.

    A curve is of runs that differ in λ alone; settings besides the loss stand before its name.
    """
    curves: dict[str, dict[int, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for run, setting in zip(runs, settings(runs), strict=True):
        words = [
            v for k, v in setting.items() if k not in ("loss", "asked for", "sparsity") and not k.startswith("loss.")
        ]
        name = " ".join([*words, run.loss])
        curves[name][run.seed].append(Point(run.metrics["final/l0"], run.metrics["final/ce_increase"]))
    order = ["local", "e2e", "e2e_ds"]
    losses = sorted(curves, key=lambda name: (order.index(name) if name in order else len(order), name))
    header = [
        "L0",
        *(f"CE loss increase, {loss}" for loss in losses),
        *(f"{x} / local" for x in losses if x != "local"),
    ]
    rows: list[list[str]] = []
    for l0 in at:
        found = {loss: {s: ce_increase_at(p, l0=l0) for s, p in seeds.items()} for loss, seeds in curves.items()}
        values = {loss: {s: v for s, v in seeds.items() if v is not None} for loss, seeds in found.items()}
        local = values.get("local", {})
        ratios = {x: [v / local[s] for s, v in values[x].items() if s in local] for x in losses if x != "local"}
        rows.append(
            [f"{l0:g}", *(spread(list(values[x].values())) for x in losses), *(spread(r) for r in ratios.values())]
        )
    return header, rows


def spread(values: Sequence[float]) -> str:
    """`mean (lowest to highest)`; a dash where there is nothing."""
    if not values:
        return "–"
    mean = sum(values) / len(values)
    return f"{mean:.3g}" if len(values) == 1 else f"{mean:.3g} ({min(values):.3g} to {max(values):.3g})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
