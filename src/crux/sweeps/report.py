"""A sweep's summary, rebuilt from its run folders alone: tables and figures in the sweep's folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from crux.sweeps.runs import finished_runs
from crux.sweeps.tables import markdown, matched_table, runs_table
from crux.tracking.run_folder import write_whole


class Report(NamedTuple):
    """What was written."""

    folder: Path
    tables: dict[str, tuple[list[str], list[list[str]]]]
    """Title → header and rows."""

    def show(self) -> None:
        """The tables on the screen, and where they lie."""
        console = Console(width=None if Console().is_terminal else 140, highlight=False, markup=False)
        for title, (header, rows) in self.tables.items():
            table = Table(*header, title=title, title_justify="left")
            for row in rows:
                table.add_row(*row)
            console.print(table)
        console.print(f"report  {self.folder / 'report.md'}", soft_wrap=True)


def write_report(folder: Path, *, at: Sequence[float]) -> Report:
    """Writes `report.md`.

    Args:
        at: L0 values at which losses are compared.

    Raises:
        ValueError: where no run has finished.
    """
    runs = finished_runs(folder)
    tables = {"Runs": runs_table(runs)}
    if len({r.config["sparsity"] for r in runs}) > 1 and not any(r.config.get("target_l0") for r in runs):
        tables["At equal L0"] = matched_table(runs, at=at)
    text = "\n\n".join(markdown(header, rows) for header, rows in tables.values()) + "\n"
    (folder / "figures").mkdir(exist_ok=True)
    write_whole(folder / "report.md", text)
    return Report(folder, tables)
