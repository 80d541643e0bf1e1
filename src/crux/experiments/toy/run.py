"""A toy experiment, top to bottom: its programs trained, what came of them judged, drawn, and left in the run folder and in MLflow."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from rich.table import Table

from crux.experiments.toy.result import Check, Experiment, Result
from crux.experiments.toy.training import train
from crux.schema import Config, to_plain
from crux.toy.program import Program, write_tensors
from crux.tracking.run import earlier_run, how_to_compare, run_name, tracked
from crux.tracking.run_folder import RunFolder, new_path, write_whole
from crux.training.fit import checkpoint_step


def run_toy(config: Config, *, folder: Path | None) -> None:
    """Runs the experiment that the configuration names; one that was interrupted goes on with the program it was at."""
    assert config.toy is not None
    torch.manual_seed(config.seed)
    earlier = earlier_run(config, folder)
    if earlier is not None and earlier.done:
        print(f"{run_name(config)}: done before, in {earlier.path}")
        return
    experiment = cast(Experiment, importlib.import_module(f"crux.experiments.toy.{config.toy.experiment}"))
    programs = experiment.programs(config)
    job = earlier or RunFolder.create(
        folder or new_path(Path(config.output_dir), f"toy_{config.toy.experiment}"), to_plain(config)
    )
    job.forget_after(reached(job, programs, max_steps=config.trainer.max_steps))
    with tracked(config, job, params={"instances": sum(p.importance.shape[:2].numel() for p in programs)}) as tracker:
        trained = []
        for i, program in enumerate(programs):
            before = i * config.trainer.max_steps  # programs follow each other in the history

            def add_row(step: int, row: dict[str, float], before: int = before) -> None:
                job.add_row(before + step, row)
                if tracker is not None:
                    tracker.metrics(before + step, row)

            trained.append(train(program, config, folder=job.programs / program.name, add_row=add_row))
        found = experiment.result(config, trained)
        metrics = write(job, found)
        if tracker is not None:
            tracker.metrics(0, metrics)
            tracker.files(job.path)
        job.finish()
    show(config, job, found)


def reached(job: RunFolder, programs: Sequence[Program], *, max_steps: int) -> int:
    """The step of the history from which the job goes on: programs that are done, and the one it was at."""
    for i, program in enumerate(programs):
        folder = job.programs / program.name
        if not (folder / "model.safetensors").exists():
            return i * max_steps + checkpoint_step(folder / "checkpoints" / "last.ckpt")
    return len(programs) * max_steps


def write(job: RunFolder, found: Result) -> dict[str, float]:
    """Figures, arrays, report, checks and metrics into the run folder; returns the metrics."""
    for name, figure in found.figures.items():
        figure.savefig(job.path / "figures" / f"{name}.png", dpi=150)
    write_tensors(job.path / "arrays.safetensors", found.arrays)
    write_whole(
        job.path / "report.md", "\n\n".join(text for text in (found.report, markdown(found.checks)) if text) + "\n"
    )
    failed = sum(not check.passed for check in found.checks)
    metrics = {f"final/{name}": value for name, value in found.metrics.items()}
    metrics |= {"final/checks": float(len(found.checks)), "final/checks_failed": float(failed)}
    job.write_metrics(metrics)
    return metrics


def markdown(checks: Sequence[Check]) -> str:
    """The checks as a table."""
    rows = [
        f"| {c.what} | {c.value:.5g} | {c.low:.5g} … {c.high:.5g} | {'yes' if c.passed else 'NO'} |" for c in checks
    ]
    return "\n".join(["| what | found | should be | is it |", "|---|---|---|---|", *rows])


def show(config: Config, job: RunFolder, found: Result) -> None:
    """The report and the checks on the screen, and where everything lies."""
    console = Console(highlight=False)
    if found.report:
        console.print(found.report, markup=False)
    table = Table(title=run_name(config), title_justify="left")
    for column in ("what", "found", "should be", ""):
        table.add_column(column, justify="right" if column == "found" else "left")
    for check in found.checks:
        band = f"{check.low:.4g} … {check.high:.4g}"
        table.add_row(check.what, f"{check.value:.4g}", band, "ok" if check.passed else "[red]outside[/red]")
    console.print(table)
    console.print(f"run folder  {job.path}", soft_wrap=True)
    if config.tracking.mlflow:
        console.print(f"compare     {how_to_compare(config)}", soft_wrap=True)
