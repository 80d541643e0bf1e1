"""A job that trains toy models: train the programs of an experiment one after the other, then compute its result."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from crux.config.schema import Adam, BatchTrainer
from crux.runs.experiment import prepare_experiment
from crux.runs.life_cycle import ActiveRun, PreparedJob, run_job
from crux.runs.result import Result
from crux.runs.run_folder import RunFolder
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.options import Toy, ToyJob
from crux.toy.program import Program, TrainedProgram
from crux.toy.training import last_row_of_programs, train_program


def run(config: ToyJob, *, folder: Path | None) -> RunFolder:
    """Run the experiment that the configuration names. An interrupted run continues with the program that was being trained.

    Args:
        folder: the run folder, if a sweep has assigned one; None: a new one.
    """

    def prepare() -> PreparedJob:
        torch.manual_seed(config.seed)
        experiment = import_module(f"crux.toy.experiments.{config.toy.experiment}").EXPERIMENT
        assert isinstance(experiment, ToyExperiment)
        options = config if isinstance(config, experiment.options) else config.toy
        programs = experiment.programs(options, seed=config.seed)

        def compute(run: ActiveRun) -> Result:
            trained = [train_job_program(config, program, run, n_before=i) for i, program in enumerate(programs)]
            return experiment.result(options, trained, run)

        names = [program.name for program in programs]
        work = prepare_experiment(
            config,
            compute=compute,
            last_row=partial(last_row_of_programs, names=names, max_steps=config.trainer.max_steps),
            params={"instances": sum(p.importance.shape[:2].numel() for p in programs)},
        )
        return replace(work, name=f"toy_{config.toy.experiment}")

    return run_job(config, folder=folder, prepare=prepare)


@runtime_checkable
class ToyTrainingConfig(Protocol):
    """The sections of the configuration of a job that trains toy models."""

    @property
    def toy(self) -> Toy: ...

    @property
    def optimizer(self) -> Adam: ...

    @property
    def trainer(self) -> BatchTrainer: ...

    callbacks: dict[str, Any]


def train_job_program(config: ToyTrainingConfig, program: Program, run: ActiveRun, *, n_before: int) -> TrainedProgram:
    """Train a program of a job. In the history, its rows follow those of the `n_before` programs before it."""

    def add_row(step: int, row: Mapping[str, float]) -> None:
        run.add_row(n_before * config.trainer.max_steps + step, row)

    return train_program(
        program,
        config.toy,
        optimizer=config.optimizer,
        trainer=config.trainer,
        callbacks=config.callbacks,
        folder=run.folder.programs / program.name,
        add_row=add_row,
    )
