"""A toy experiment: its programs trained, then what came of them."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from crux.config.schema import Config
from crux.runs.experiment import AddRow, run_experiment
from crux.runs.result import Result
from crux.runs.run_folder import RunFolder
from crux.toy.experiments.result import Experiment
from crux.toy.experiments.training import train
from crux.toy.program import Program
from crux.training.fit import checkpoint_step


def run_toy(config: Config, *, folder: Path | None) -> None:
    """Runs the experiment that the configuration names; one that was interrupted goes on with the program it was at."""
    assert config.toy is not None
    torch.manual_seed(config.seed)
    experiment = cast(Experiment, importlib.import_module(f"crux.toy.experiments.{config.toy.experiment}"))
    programs = experiment.programs(config)

    def find(job: RunFolder, add_row: AddRow) -> Result:
        trained = []
        for i, program in enumerate(programs):
            before = i * config.trainer.max_steps  # programs follow each other in the history

            def add_later(step: int, row: dict[str, float], before: int = before) -> None:
                add_row(before + step, row)

            trained.append(train(program, config, folder=job.programs / program.name, add_row=add_later))
        return experiment.result(config, trained)

    run_experiment(
        config,
        name=f"toy_{config.toy.experiment}",
        folder=folder,
        params={"instances": sum(p.importance.shape[:2].numel() for p in programs)},
        last_row=lambda job: reached(job, programs, max_steps=config.trainer.max_steps),
        find=find,
    )


def reached(job: RunFolder, programs: Sequence[Program], *, max_steps: int) -> int:
    """The step of the history from which the job goes on: programs that are done, and the one it was at."""
    for i, program in enumerate(programs):
        folder = job.programs / program.name
        if not (folder / "model.safetensors").exists():
            return i * max_steps + checkpoint_step(folder / "checkpoints" / "last.ckpt")
    return len(programs) * max_steps
