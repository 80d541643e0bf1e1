"""An experiment, from its options to its report: what every subject matter's experiments share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Generic, TypeVar

import torch
from rich.table import Table
from rich.text import Text

from crux.config.console import make_console
from crux.config.files import write_tensors, write_text
from crux.config.markdown import markdown_table
from crux.config.schema import Job
from crux.runs.life_cycle import Outcome, Run, Work, run_job
from crux.runs.result import Check, Result
from crux.runs.run_folder import RunFolder

Options = TypeVar("Options")


def start_over(folder: RunFolder) -> int:
    """Keep no row of an earlier start's history: what was computed is added again."""
    return -1


def keep_rows(folder: RunFolder) -> int:
    """Keep every row of an earlier start's history: those that are computed again are not added again."""
    return max((int(row["step"]) for row in folder.history()), default=-1)


@dataclass(frozen=True)
class Experiment(Generic[Options]):
    """What a file in a folder experiments/ offers as `EXPERIMENT`."""

    options: type[Options]
    """What it reads: the dataclass of its own section, or the job's if it needs several sections."""
    result: Callable[[Options, Run], Result]
    """Computes the result; adds rows to the run's history, and takes pieces of an earlier start from its folder."""
    last_row: Callable[[RunFolder], int] = start_over
    """The last row of an earlier start's history that stays."""


def run_experiment(config: Job, *, section: object, module: str, folder: Path | None) -> None:
    """Run the experiment in a module, whose options are the configuration or its section.

    Args:
        section: the experiment's own section of the configuration.
        module: dotted name of the module with EXPERIMENT.
    """

    def prepare() -> Work:
        torch.manual_seed(config.seed)
        experiment = import_module(module).EXPERIMENT
        assert isinstance(experiment, Experiment)
        options = config if isinstance(config, experiment.options) else section
        assert isinstance(options, experiment.options), (
            f"{module} reads {experiment.options}, its YAML composes {options}"
        )
        return work_of(config, find=partial(experiment.result, options), last_row=experiment.last_row, params={})

    run_job(config, folder=folder, prepare=prepare)


def work_of(
    config: Job,
    *,
    find: Callable[[Run], Result],
    last_row: Callable[[RunFolder], int],
    params: Mapping[str, object],
) -> Work:
    """Return the work of an experiment: its result computed, written to the run folder, and shown."""

    def carry_out(run: Run) -> Mapping[str, Outcome]:
        result = find(run)
        metrics = write(run.folder, result)
        return {"": Outcome(metrics, lambda: show(config.run_name(), result))}

    return Work(
        config.run_name().replace(" ", "_").replace("/", "_"), carry_out, last_row=last_row, params=params, parts={}
    )


def write(job: RunFolder, found: Result) -> dict[str, float]:
    """Write figures, arrays and report into the run folder; return the metrics, checks included."""
    for name, figure in found.figures.items():
        figure.savefig(job.path / "figures" / f"{name}.png", dpi=150)
    write_tensors(job.path / "arrays.safetensors", found.arrays)
    write_text(
        job.path / "report.md", "\n\n".join(text for text in (found.report, markdown(found.checks)) if text) + "\n"
    )
    failed = sum(not check.passed for check in found.checks)
    metrics = {f"final/{name}": value for name, value in found.metrics.items()}
    return metrics | {"final/checks": float(len(found.checks)), "final/checks_failed": float(failed)}


def markdown(checks: Sequence[Check]) -> str:
    """The checks as a table."""
    rows = [[c.what, f"{c.value:.5g}", f"{c.low:.5g} … {c.high:.5g}", "yes" if c.passed else "NO"] for c in checks]
    return markdown_table(["what", "found", "should be", "is it"], rows)


def show(name: str, found: Result) -> None:
    """Print the report and the checks."""
    console = make_console(width=None)
    if found.report:
        console.print(found.report)
    table = Table(title=name, title_justify="left")
    for column in ("what", "found", "should be", ""):
        table.add_column(column, justify="right" if column == "found" else "left")
    for check in found.checks:
        band = f"{check.low:.4g} … {check.high:.4g}"
        table.add_row(check.what, f"{check.value:.4g}", band, "ok" if check.passed else Text("outside", "red"))
    console.print(table)
