"""An experiment that is a file in crux/experiments/<task>: learning coefficients, degeneracy, the interaction basis."""

import importlib
from pathlib import Path
from typing import Protocol, cast

import torch

from crux.config.schema import Config, experiment_name
from crux.runs.experiment import AddRow, run_experiment
from crux.runs.result import Result
from crux.runs.run_folder import RunFolder


class Experiment(Protocol):
    """Such a file. One that can go on where it was stopped has `last_row(job) -> int` too: the last row of its history that stays."""

    def result(self, config: Config, job: RunFolder, add_row: AddRow) -> Result:
        """What was found; rows of its history are added on the way."""
        ...


SUBJECT_MATTER = {"interaction_basis": "degeneracy"}


def run_named(config: Config, *, folder: Path | None) -> None:
    """Runs the experiment that the configuration names."""
    torch.manual_seed(config.seed)
    group, name = experiment_name(config)
    experiment = cast(
        Experiment, importlib.import_module(f"crux.{SUBJECT_MATTER.get(group, group)}.experiments.{name}")
    )
    run_experiment(
        config,
        name=f"{group}_{name}",
        folder=folder,
        params={},
        last_row=getattr(experiment, "last_row", lambda job: -1),
        find=lambda job, add_row: experiment.result(config, job, add_row),
    )
