"""`experiment=report sweep_name=<name>`: a sweep's runs side by side and at matched L0, from their run folders alone."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from crux.evaluation.matched import Point, ce_increase_at
from crux.schema import Config
from crux.tracking.run_folder import RunFolder, comparable, write_whole


class Run(NamedTuple):
    """A finished run of a sweep."""

    config: dict[str, Any]
    metrics: dict[str, float]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def loss(self) -> str:
        return self.config["loss"]["name"]


def _asked(config: dict[str, Any]) -> str:
    """How sparse it was to be."""
    if (k := config.get("sae", {}).get("k")) is not None:
        return f"k={k}"
    target = config.get("target_l0")
    return f"λ={config['sparsity']:g}" if target is None else f"L0={target:g}"


SETTINGS: dict[str, Callable[[dict[str, Any]], str]] = {
    "architecture": lambda c: c.get("sae", {}).get("name", "relu"),
    "loss": lambda c: c["loss"]["name"],
    "hook point": lambda c: ", ".join(c.get("hook_points") or [c.get("hook_point") or ""]),
    "asked for": _asked,
    "steps": lambda c: str(c.get("trainer", {}).get("max_steps", "")),
}
"""What runs of a sweep may differ in, besides the seed; a column where they do."""

MEASURED = {
    "L0": "l0",
    "CE loss increase": "ce_increase",
    "KL": "kl",
    "explained variance": "explained_variance",
    "loss recovered (mean)": "loss_recovered_mean",
    "norm ratio": "norm_ratio",
}
"""Columns of the table, and the metrics in them."""


def finished_runs(folder: Path) -> list[Run]:
    """The runs in a sweep's folder that have ended, by their settings and seed.

    Raises:
        ValueError: where the folder has none.
    """
    found: list[Run] = []
    for path in folder.rglob("DONE"):
        run = RunFolder(path.parent)
        if not (run.path / "metrics.json").exists():
            continue  # a job of many SAEs, whose runs are in it
        metrics = json.loads((run.path / "metrics.json").read_text("utf-8"))
        found.append(Run(run.config(), metrics))
    if not found:
        raise ValueError(f"no finished runs in {folder}")
    return sorted(found, key=lambda r: (r.loss, r.config["sparsity"], list(_known(r).values()), r.seed))


def _known(run: Run) -> dict[str, str]:
    return {title: value(run.config) for title, value in SETTINGS.items()}


def settings(runs: Sequence[Run]) -> list[dict[str, str]]:
    """What the runs differ in besides the seed, a column each: those of `SETTINGS`, and every other key that differs

    between runs which these cannot tell apart.
    """
    known = [_known(run) for run in runs]
    flat = [comparable(run.config) for run in runs]
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for titles, keys in zip(known, flat, strict=True):
        alike[tuple(titles.values())].append(keys)
    others = sorted(
        {
            key
            for group in alike.values()
            for key in {k for keys in group for k in keys} - {"seed"}
            if len({str(keys.get(key)) for keys in group}) > 1
        }
    )
    shown = [title for title in SETTINGS if title == "loss" or len({k[title] for k in known}) > 1]
    return [
        {title: titles[title] for title in shown} | {key: str(keys.get(key)) for key in others}
        for titles, keys in zip(known, flat, strict=True)
    ]


def compare(config: Config) -> None:
    """Prints the tables of a sweep's runs, and writes them to its `report.md`."""
    folder = Path(config.output_dir) / "sweeps" / config.sweep_name
    runs = finished_runs(folder)
    tables = [runs_table(runs)]
    if len({r.config["sparsity"] for r in runs}) > 1 and not any(r.config.get("target_l0") for r in runs):
        tables.append(matched_table(runs, at=config.report_l0))
    text = "\n\n".join(markdown(header, rows) for header, rows in tables) + "\n"
    write_whole(folder / "report.md", text)
    console = Console(width=None if Console().is_terminal else 140, highlight=False)
    for header, rows in tables:
        table = Table(*header)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(f"report  {folder / 'report.md'}", soft_wrap=True)


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
