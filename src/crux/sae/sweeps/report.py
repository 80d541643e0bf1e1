"""A sweep's summary, rebuilt from its run folders alone: tables and figures in the sweep's folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich.table import Table

from crux.config.console import make_console
from crux.config.files import write_text
from crux.config.markdown import markdown_table
from crux.sae.options import ReportJob
from crux.sae.sweeps.figures import plot_sweep
from crux.sae.sweeps.finished_runs import read_finished_runs, sweep_folder
from crux.sae.sweeps.l0_curves import build_curves
from crux.sae.sweeps.matched import BOOTSTRAP_SEED, ENOUGH_SEEDS, RESAMPLES
from crux.sae.sweeps.tables import (
    RATE,
    match_losses,
    matched_numbers,
    matched_table,
    runs_numbers,
    runs_table,
    times_table,
)

NOTES = {
    "Runs": "On held-out text: nats per token, shares for explained variance, loss recovered and alive latents. "
    "Of toy models: the network's own loss, summed over features, and shares. Mean over seeds (lowest to highest).",
    "At equal L0": "CE loss increase in nats per token, linear between the two neighbouring L0 of a seed's runs; mean over "
    "seeds (lowest to highest). A ratio is that of the means over the seeds that both losses have, to the first loss that is "
    "there of local, e2e, e2e_ds and the others by name; in brackets the lowest and highest of the seeds' own ratios, and "
    f"from {ENOUGH_SEEDS} seeds on a bootstrap 95 % interval over seeds ({RESAMPLES:,} resamples, seed {BOOTSTRAP_SEED}).",
    "Time": "Training tokens a second, and time a token as a ratio to the e2e run of the same seed, all else equal. Of the last "
    "start, where a run was interrupted.",
}


def run(config: ReportJob, *, folder: Path | None) -> None:
    """Write a sweep's report again and show it; it is in the sweep's folder, and has no run folder of its own.

    Raises:
        UserError: if there is no such sweep, or none of its runs has finished.
    """
    name = config.sweep or config.sweep_name or ""
    write_report(sweep_folder(Path(config.output_dir), name), at=config.report_l0).show()


class Report(NamedTuple):
    """What was written."""

    folder: Path
    tables: dict[str, pd.DataFrame]
    """By title."""

    def show(self) -> None:
        """The tables on the screen, and where they lie."""
        console = make_console(width=140)
        for title, shown in self.tables.items():
            table = Table(*shown.columns, title=title, title_justify="left")
            for row in shown.to_numpy():
                table.add_row(*map(str, row))
            console.print(table)
        console.print(f"report  {self.folder / 'report.md'}", soft_wrap=True)


def write_report(folder: Path, *, at: Sequence[float]) -> Report:
    """Writes `report.md`, `runs.csv`, and where there are curves to compare `matched.csv` and `figures/`.

    Args:
        at: L0 values at which losses are compared.

    Raises:
        UserError: where no run has finished.
    """
    runs = read_finished_runs(folder)
    lines = build_curves(runs)
    tables, found = {"Runs": runs_table(runs)}, match_losses(lines, at=at)
    write_text(folder / "runs.csv", _csv(runs_numbers(runs)))
    (folder / "matched.csv").unlink(missing_ok=True)
    if found:
        tables["At equal L0"] = matched_table(found)
        write_text(folder / "matched.csv", _csv(matched_numbers(found)))
    if RATE in runs.metrics:
        tables["Time"] = times_table(runs)
    drawn = plot_sweep(lines, at=at) if lines else {}
    (folder / "figures").mkdir(exist_ok=True)
    for old in (folder / "figures").glob("*.png"):
        old.unlink()
    for name, figure in drawn.items():
        figure.savefig(folder / "figures" / f"{name}.png", dpi=150)
    parts = [f"# {folder.name}", *(f"## {t}\n\n{NOTES[t]}\n\n{_markdown(shown)}" for t, shown in tables.items())]
    parts += [f"![{name}](figures/{name}.png)" for name in drawn]
    write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    return Report(folder, tables)


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, lineterminator="\n")


def _markdown(table: pd.DataFrame) -> str:
    return markdown_table(list(table), table.to_numpy().tolist())
