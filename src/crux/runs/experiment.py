"""An experiment, top to bottom: what is found is drawn, checked, and left in the run folder and in MLflow."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from crux.config.console import make_console
from crux.config.files import write_tensors, write_text
from crux.config.markdown import markdown_table
from crux.config.schema import Config, to_plain
from crux.runs.result import Check, Result
from crux.runs.run_folder import RunFolder, new_path
from crux.runs.tracking import earlier_run, how_to_compare, run_name, tracked

AddRow = Callable[[int, dict[str, float]], None]
"""Adds a row to the history, of the run folder and of MLflow."""


def run_experiment(
    config: Config,
    *,
    name: str,
    folder: Path | None,
    params: Mapping[str, object],
    last_row: Callable[[RunFolder], int],
    find: Callable[[RunFolder, AddRow], Result],
) -> None:
    """Runs `find`, or nothing where the run that is asked for was done before.

    Args:
        name: of the run folder, behind the time.
        folder: the run folder that a sweep gives; None: a new one.
        params: for MLflow, beside those of the configuration.
        last_row: of an earlier run's history that is kept where that run goes on.
    """
    earlier = earlier_run(config, folder)
    if earlier is not None and earlier.done:
        print(f"{run_name(config)}: done before, in {earlier.path}")
        return
    job = earlier or RunFolder.create(folder or new_path(Path(config.output_dir), name), to_plain(config))
    job.forget_after(-1 if earlier is None else last_row(job))
    with tracked(config, job, params=params) as tracker:

        def add_row(step: int, row: dict[str, float]) -> None:
            job.add_row(step, row)
            if tracker is not None:
                tracker.metrics(step, row)

        found = find(job, add_row)
        metrics = write(job, found)
        if tracker is not None:
            tracker.metrics(0, metrics)
            tracker.files(job.path)
        job.finish()
    show(config, job, found)


def write(job: RunFolder, found: Result) -> dict[str, float]:
    """Figures, arrays, report, checks and metrics into the run folder; returns the metrics."""
    for name, figure in found.figures.items():
        figure.savefig(job.path / "figures" / f"{name}.png", dpi=150)
    write_tensors(job.path / "arrays.safetensors", found.arrays)
    write_text(
        job.path / "report.md", "\n\n".join(text for text in (found.report, markdown(found.checks)) if text) + "\n"
    )
    failed = sum(not check.passed for check in found.checks)
    metrics = {f"final/{name}": value for name, value in found.metrics.items()}
    metrics |= {"final/checks": float(len(found.checks)), "final/checks_failed": float(failed)}
    job.write_metrics(metrics)
    return metrics


def markdown(checks: Sequence[Check]) -> str:
    """The checks as a table."""
    rows = [[c.what, f"{c.value:.5g}", f"{c.low:.5g} … {c.high:.5g}", "yes" if c.passed else "NO"] for c in checks]
    return markdown_table(["what", "found", "should be", "is it"], rows)


def show(config: Config, job: RunFolder, found: Result) -> None:
    """The report and the checks on the screen, and where everything lies."""
    console = make_console(width=None)
    if found.report:
        console.print(found.report)
    table = Table(title=run_name(config), title_justify="left")
    for column in ("what", "found", "should be", ""):
        table.add_column(column, justify="right" if column == "found" else "left")
    for check in found.checks:
        band = f"{check.low:.4g} … {check.high:.4g}"
        table.add_row(check.what, f"{check.value:.4g}", band, "ok" if check.passed else Text("outside", "red"))
    console.print(table)
    console.print(f"run folder  {job.path}", soft_wrap=True)
    if config.tracking.mlflow:
        console.print(f"compare     {how_to_compare(config)}", soft_wrap=True)
