"""Five features in two dimensions: orthogonal when dense, digons and a pentagon when sparse (Elhage et al., introduction)."""

from collections.abc import Sequence

from crux.experiments.toy.programs import over_densities
from crux.experiments.toy.result import Result
from crux.schema import Config
from crux.toy.program import Program, Trained


def programs(config: Config) -> list[Program]:
    """One instance for each density and seed."""
    return [over_densities(config)]


def result(config: Config, trained: Sequence[Trained]) -> Result:
    """The best instance of each density, by its loss."""
    (found,) = trained
    return Result({"loss": float(found.loss.mean())}, [], {}, found.weights._asdict() | {"W_out": found.loss}, "")
