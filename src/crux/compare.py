"""`experiment=report sweep_name=<name>`: a sweep's runs at matched L0, from their run folders alone."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from crux.evaluation.matched import Point, ce_increase_at
from crux.schema import Config
from crux.tracking.run_folder import RunFolder, write_whole


class Run(NamedTuple):
    """A finished run of a sweep."""

    loss: str
    sparsity: float
    seed: int
    metrics: dict[str, float]


def finished_runs(folder: Path) -> list[Run]:
    """The runs in a sweep's folder that have ended, by loss, λ and seed.

    Raises:
        ValueError: where the folder has none.
    """
    found: list[Run] = []
    for path in folder.glob("*/DONE"):
        run = RunFolder(path.parent)
        config = run.config()
        metrics = json.loads((run.path / "metrics.json").read_text("utf-8"))
        found.append(Run(config["loss"]["name"], config["sparsity"], config["seed"], metrics))
    if not found:
        raise ValueError(f"no finished runs in {folder}")
    return sorted(found, key=lambda r: (r.loss, r.sparsity, r.seed))


def compare(config: Config) -> None:
    """Prints the runs and the CE loss increase at matched L0, and writes both to the sweep's `report.md`."""
    folder = Path(config.output_dir) / "sweeps" / config.sweep_name
    runs = finished_runs(folder)
    tables = [runs_table(runs), matched_table(runs, at=config.report_l0)]
    text = "\n\n".join(markdown(header, rows) for header, rows in tables) + "\n"
    write_whole(folder / "report.md", text)
    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    for header, rows in tables:
        table = Table(*header)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(f"report  {folder / 'report.md'}", soft_wrap=True)


def runs_table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """A line a (loss, λ): mean over seeds, with the range."""
    groups: dict[tuple[str, float], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.loss, run.sparsity].append(run)
    shown = {"L0": "l0", "CE loss increase": "ce_increase", "KL": "kl", "explained variance": "explained_variance"}
    shown |= {"loss recovered (mean)": "loss_recovered_mean", "norm ratio": "norm_ratio"}
    header = ["loss", "λ", "seeds", *shown]
    rows = [
        [
            loss,
            f"{sparsity:g}",
            str(len(group)),
            *(spread([r.metrics[f"final/{k}"] for r in group]) for k in shown.values()),
        ]
        for (loss, sparsity), group in groups.items()
    ]
    return header, rows


def matched_table(runs: Sequence[Run], *, at: Sequence[float]) -> tuple[list[str], list[list[str]]]:
    """CE loss increase at each L0 by loss, and its ratio to the local loss, each the mean over seeds with the range."""
    curves: dict[str, dict[int, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        curves[run.loss][run.seed].append(Point(run.metrics["final/l0"], run.metrics["final/ce_increase"]))
    losses = (
        sorted(curves, key=["local", "e2e", "e2e_ds"].index)
        if set(curves) <= {"local", "e2e", "e2e_ds"}
        else sorted(curves)
    )
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
