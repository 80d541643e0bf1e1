"""`experiment=report sweep_name=<name>`: a sweep's runs side by side and at matched L0, from their run folders alone."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from crux.evaluation.matched import Point, ce_increase_at
from crux.schema import Config
from crux.tracking.run_folder import RunFolder, write_whole


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

    @property
    def name(self) -> str:
        """Architecture and loss; the paper's architecture goes without saying."""
        sae = self.config.get("sae", {}).get("name", "relu")
        return self.loss if sae == "relu" else f"{sae} {self.loss}"


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
    "β": lambda c: str(c.get("sae", {}).get("beta")),
    "gradient of": lambda c: str(c.get("gradient", {}).get("target")),
    "Fisher form": lambda c: "block-diagonal" if c["loss"].get("block_diagonal") else "joint",
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
    """The runs in a sweep's folder that have ended, by loss, architecture, settings and seed.

    Raises:
        ValueError: where the folder has none.
    """
    found: list[Run] = []
    for path in folder.glob("*/DONE"):
        run = RunFolder(path.parent)
        metrics = json.loads((run.path / "metrics.json").read_text("utf-8"))
        found.append(Run(run.config(), metrics))
    if not found:
        raise ValueError(f"no finished runs in {folder}")
    return sorted(found, key=lambda r: (r.loss, r.name, r.config["sparsity"], list(settings(r).values()), r.seed))


def settings(run: Run) -> dict[str, str]:
    """What the run may differ from others in."""
    return {title: value(run.config) for title, value in SETTINGS.items()}


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
    told = [settings(run) for run in runs]
    shown = [title for title in SETTINGS if title == "loss" or len({t[title] for t in told}) > 1]
    groups: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run, setting in zip(runs, told, strict=True):
        groups[tuple(setting[title] for title in shown)].append(run)
    header = [*shown, "seeds", *MEASURED, "alive", "time / e2e"]
    rows = [
        [
            *setting,
            str(len(group)),
            *(spread([r.metrics[f"final/{k}"] for r in group]) for k in MEASURED.values()),
            spread(
                [v for r in group for k, v in r.metrics.items() if re.fullmatch(r"final/alive_heldout_\d+_frac", k)]
            ),
            spread(_times(group, runs)),
        ]
        for setting, group in groups.items()
    ]
    return header, rows


def _times(group: Sequence[Run], runs: Sequence[Run]) -> list[float]:
    """Each run's time per token over that of the e2e run of its seed which shares its architecture, where both are known."""
    rate = "final/tokens_per_second"
    found: list[float] = []
    for run in group:
        rivals = [
            r for r in runs
            if r.loss == "e2e" and r.seed == run.seed and settings(r)["architecture"] == settings(run)["architecture"]
        ]  # fmt: skip
        if rivals and rate in rivals[0].metrics and rate in run.metrics:
            found.append(rivals[0].metrics[rate] / run.metrics[rate])
    return found


def matched_table(runs: Sequence[Run], *, at: Sequence[float]) -> tuple[list[str], list[list[str]]]:
    """CE loss increase at each L0 by loss, and its ratio to the local loss, each the mean over seeds with the range."""
    curves: dict[str, dict[int, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        curves[run.name][run.seed].append(Point(run.metrics["final/l0"], run.metrics["final/ce_increase"]))
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
