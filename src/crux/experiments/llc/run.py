"""An experiment with local learning coefficients."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

import torch

from crux.experiments.result import Result
from crux.experiments.run import run_experiment
from crux.schema import Config


class Experiment(Protocol):
    """A module in this folder."""

    def result(self, config: Config, add_row: Callable[[int, dict[str, float]], None]) -> Result:
        """What was found; rows of its history are added on the way."""
        ...


def run_llc(config: Config, *, folder: Path | None) -> None:
    """Runs the experiment that the configuration names, from its beginning: none is so long that it is gone on with."""
    assert config.llc is not None
    torch.manual_seed(config.seed)
    experiment = cast(Experiment, importlib.import_module(f"crux.experiments.llc.{config.llc.experiment.value}"))
    run_experiment(
        config,
        name=f"llc_{config.llc.experiment.value}",
        folder=folder,
        params={},
        last_row=lambda job: -1,
        find=lambda job, add_row: experiment.result(config, add_row),
    )
