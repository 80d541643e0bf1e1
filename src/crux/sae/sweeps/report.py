"""The report of a sweep: tables and figures in the sweep's folder, built from its run folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich.table import Table

from crux.config.console import make_console
from crux.config.errors import UserError
from crux.config.files import write_text
from crux.config.markdown import markdown_table
from crux.config.schema import ReportGeometry
from crux.sae.options import ReportJob
from crux.sae.sweeps.figures import plot_sweep
from crux.sae.sweeps.finished_runs import FinishedRuns, read_finished_runs, sweep_folder
from crux.sae.sweeps.geometry_report import NOTES, GeometrySection, describe_geometry
from crux.sae.sweeps.l0_curves import build_curves
from crux.sae.sweeps.matched import BOOTSTRAP_SEED, MIN_SEEDS_FOR_INTERVAL, RESAMPLES
from crux.sae.sweeps.tables import (
    RATE,
    Match,
    match_losses,
    matched_numbers,
    matched_table,
    runs_numbers,
    runs_table,
    times_table,
)

TABLE_NOTES = {
    "Runs": "On held-out text: nats per token, shares for explained variance, loss recovered and alive latents. "
    "Of toy models: the network's own loss, summed over features, and shares. Mean over seeds (lowest to highest).",
    "At equal L0": "CE loss increase in nats per token, interpolated linearly between the two neighbouring L0 of a seed's runs; mean "
    "over seeds (lowest to highest). Ratios are between means over the seeds that both losses have; the denominator is the first "
    "of local, e2e, e2e_ds and others by name that is present. In brackets: the lowest and highest ratio of a single seed and, "
    f"from {MIN_SEEDS_FOR_INTERVAL} seeds on, a bootstrap 95 % interval over seeds ({RESAMPLES:,} resamples, seed {BOOTSTRAP_SEED}).",
    "Time": "Training tokens per second, and time per token divided by that of the e2e run with the same seed and settings. If a "
    "run was interrupted, the values are those since its last start.",
    **NOTES,
}
"""The text between the title of a table and the table."""


def run(config: ReportJob, *, folder: Path | None) -> None:
    """Write the report of a sweep again and print it. The job has no run folder; the report is in the sweep's folder.

    Raises:
        UserError: if there is no such sweep, or none of its runs has finished.
    """
    name = config.sweep or config.sweep_name or ""
    write_report(
        sweep_folder(Path(config.output_dir), name), at=config.report_l0, geometry=config.report_geometry
    ).print()


class Report(NamedTuple):
    """A report that has been written."""

    folder: Path
    tables: dict[str, pd.DataFrame]
    """The tables of the report, by title."""
    remarks: list[str]
    """Sentences about what is missing in the comparison of dictionaries."""

    def print(self) -> None:
        """Print the tables and the path of the report."""
        console = make_console(width=140)
        for title, frame in self.tables.items():
            table = Table(*frame.columns, title=title, title_justify="left")
            for row in frame.to_numpy():
                table.add_row(*map(str, row))
            console.print(table)
        for remark in self.remarks:
            console.print(remark, soft_wrap=True, markup=False)
        console.print(f"report  {self.folder / 'report.md'}", soft_wrap=True)


def write_report(folder: Path, *, at: Sequence[float], geometry: ReportGeometry = ReportGeometry.none) -> Report:
    """Write `report.md` and `runs.csv`, and `matched.csv` and `figures/` if there are curves to compare.

    Args:
        at: L0 values at which losses are compared.
        geometry: whether the dictionaries of the SAEs are compared, too; this loads the network and the text.

    Raises:
        UserError: if no run has finished.
    """
    runs = read_finished_runs(folder)
    curves = build_curves(runs)
    tables, matches = {"Runs": runs_table(runs)}, match_losses(curves, at=at)
    write_text(folder / "runs.csv", _csv(runs_numbers(runs)))
    (folder / "matched.csv").unlink(missing_ok=True)
    if matches:
        tables["At equal L0"] = matched_table(matches)
        write_text(folder / "matched.csv", _csv(matched_numbers(matches)))
    if RATE in runs.metrics:
        tables["Time"] = times_table(runs)
    section = _describe_geometry(folder, runs, view=geometry)
    tables |= section.tables
    figures = (plot_sweep(curves, at=at) if curves else {}) | section.figures
    for old in folder.glob("geometry_*.csv"):
        old.unlink()
    for name, table in section.files.items():
        write_text(folder / name, _csv(table))
    (folder / "figures").mkdir(exist_ok=True)
    for old in (folder / "figures").glob("*.png"):  # of an earlier report, which may have had other figures
        old.unlink()
    for name, figure in figures.items():
        figure.savefig(folder / "figures" / f"{name}.png", dpi=150)
    parts = [f"# {folder.name}"]
    parts += [f"## {title}\n\n{TABLE_NOTES[title]}\n\n{_markdown(frame)}" for title, frame in tables.items()]
    if curves and (reason := _explain_missing_ratios(matches)):
        parts.append(reason)
    parts += section.remarks
    parts += [f"![{name}](figures/{name}.png)" for name in figures]
    write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    return Report(folder, tables, section.remarks)


def _describe_geometry(folder: Path, runs: FinishedRuns, *, view: ReportGeometry) -> GeometrySection:
    """Compare the dictionaries; if that is impossible, a remark says why, and the rest of the report is written."""
    nothing = GeometrySection({}, {}, {}, [])
    if view is ReportGeometry.none:
        return nothing
    try:
        return describe_geometry(folder, runs, view=view)
    except UserError as error:
        return nothing._replace(remarks=[f"The dictionaries are not compared: {error}"])


def _explain_missing_ratios(matches: Sequence[Match]) -> str:
    """Return one line on why the losses are not compared at equal L0; empty if they are, or if there is only one loss."""
    if not matches:
        return (
            "There is no matched.csv: to interpolate at equal L0, a loss needs runs with the same seed and several values of "
            "λ, k or the target L0."
        )
    compared = [match for match in matches if match.curve.loss != match.baseline]
    if compared and all(match.ratio is None for match in compared):
        l0s = ", ".join(dict.fromkeys(f"{match.l0:g}" for match in matches))
        return (
            f"There is no ratio between losses: at none of the L0 values {l0s} do two losses have runs of one seed with a lower "
            "and a higher L0. Other values can be given as report_l0=[…]."
        )
    return ""


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, lineterminator="\n")


def _markdown(table: pd.DataFrame) -> str:
    return markdown_table(list(table), table.to_numpy().tolist())
