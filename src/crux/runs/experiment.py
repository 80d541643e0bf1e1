"""Run an experiment of any subject matter, from its options to its report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from math import inf
from pathlib import Path
from typing import Generic, TypeVar

import torch
from rich.table import Table
from rich.text import Text

from crux.config.console import make_console
from crux.config.files import write_tensors, write_text
from crux.config.markdown import markdown_table
from crux.config.schema import Job
from crux.runs.life_cycle import ActiveRun, PreparedJob, RunOutcome, run_job
from crux.runs.result import Check, Result
from crux.runs.run_folder import RunFolder

Options = TypeVar("Options")


def no_last_row(folder: RunFolder) -> int:
    """Return -1: if the run is resumed, no row of its history is kept, and the experiment adds all rows again."""
    return -1


def last_row_of_history(folder: RunFolder) -> int:
    """Return the step of the last row in a run's history: if the run is resumed, all rows are kept and only later ones are added."""
    return max((int(row["step"]) for row in folder.read_history()), default=-1)


@dataclass(frozen=True)
class Experiment(Generic[Options]):
    """The `EXPERIMENT` that each file in a folder experiments/ defines."""

    options: type[Options]
    """The dataclass of the options that `result` takes: a section of the configuration, or the whole job if it needs several sections."""
    result: Callable[[Options, ActiveRun], Result]
    """A function that computes the result. It may add rows to the run's history and read intermediate results of an earlier start."""
    last_row: Callable[[RunFolder], int] = no_last_row
    """A function that returns the step of the last history row to keep when an earlier start is continued."""


def run_experiment(config: Job, *, section: object, module: str, folder: Path | None) -> RunFolder:
    """Run the experiment that a module defines; return the run folder.

    Args:
        section: the section of the configuration for this kind of experiment.
        module: dotted name of the module that defines EXPERIMENT.
        folder: the run folder, if a sweep has assigned one; None: a new one.
    """

    def prepare() -> PreparedJob:
        torch.manual_seed(config.seed)
        experiment = import_module(module).EXPERIMENT
        assert isinstance(experiment, Experiment)
        options = config if isinstance(config, experiment.options) else section
        assert isinstance(options, experiment.options), (
            f"{module} reads {experiment.options}, its YAML composes {options}"
        )
        return prepare_experiment(
            config, compute=partial(experiment.result, options), last_row=experiment.last_row, params={}
        )

    return run_job(config, folder=folder, prepare=prepare)


def prepare_experiment(
    config: Job,
    *,
    compute: Callable[[ActiveRun], Result],
    last_row: Callable[[RunFolder], int],
    params: Mapping[str, object],
) -> PreparedJob:
    """Return the job that computes the result of an experiment, writes it to the run folder and shows it."""

    def execute(run: ActiveRun) -> Mapping[str, RunOutcome]:
        result = compute(run)
        metrics = write_result(run.folder, result, title=config.run_name())
        # an experiment is a single run, whose name is empty
        return {"": RunOutcome(metrics, lambda: show_result(config.run_name(), result))}

    return PreparedJob(
        config.run_name().replace(" ", "_").replace("/", "_"), execute, last_row=last_row, params=params, run_configs={}
    )


def write_result(folder: RunFolder, result: Result, *, title: str) -> dict[str, float]:
    """Write figures, arrays and report to the run folder; return the metrics, with the number of checks and of failed checks."""
    for name, figure in result.figures.items():
        figure.savefig(folder.path / "figures" / f"{name}.png", dpi=150)
    write_tensors(folder.path / "arrays.safetensors", result.arrays)
    write_text(folder.path / "report.md", report_text(title, result))
    failed = sum(not check.passed for check in result.checks)
    metrics = {f"final/{name}": value for name, value in result.metrics.items() if value is not None}
    return metrics | {"final/checks": float(len(result.checks)), "final/checks_failed": float(failed)}


def report_text(title: str, result: Result) -> str:
    """Return the report in Markdown: the experiment's tables and text, the checks, and the figures as links."""
    parts = [f"# {title}", result.report]
    if result.checks:
        parts += ["## Checks", format_checks(result.checks)]
    if result.figures:
        parts += ["## Figures", *(f"![{name}](figures/{name}.png)" for name in result.figures)]
    return "\n\n".join(part for part in parts if part) + "\n"


def format_checks(checks: Sequence[Check]) -> str:
    """Return the checks as a Markdown table."""
    rows = [[c.what, f"{c.value:.5g}", format_range(c, digits=5), "yes" if c.passed else "NO"] for c in checks]
    return markdown_table(["check", "value", "expected range", "passed"], rows)


def format_range(check: Check, *, digits: int) -> str:
    """Return the expected range as text: `0.9 … 1.1`, `≥ 1` or `≤ 1` if it has only one end, or `2` if both ends are equal."""
    low, high = f"{check.low:.{digits}g}", f"{check.high:.{digits}g}"
    if low == high:
        return low
    if check.high == inf:
        return f"≥ {low}"
    return f"≤ {high}" if check.low == -inf else f"{low} … {high}"


def show_result(name: str, result: Result) -> None:
    """Print the report, or its summary, and the checks."""
    console = make_console(width=None)
    if text := result.report if result.summary is None else result.summary:
        console.print(text, markup=False)
    if not result.checks:
        return
    table = Table(title=name, title_justify="left")
    for column in ("check", "value", "expected range", ""):
        table.add_column(column, justify="right" if column == "value" else "left")
    for check in result.checks:
        expected = format_range(check, digits=4)
        table.add_row(check.what, f"{check.value:.4g}", expected, "ok" if check.passed else Text("outside", "red"))
    console.print(table)
