"""The interface of an experiment with toy models; each module in this folder defines one as `EXPERIMENT`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Result
from crux.toy.program import Program, TrainedProgram

Options_contra = TypeVar("Options_contra", contravariant=True)
Options = TypeVar("Options")


@runtime_checkable
class BuildPrograms(Protocol[Options_contra]):
    """A function that returns the programs to train, in order.

    Raises:
        UserError: if the options do not suit the experiment.
    """

    def __call__(self, options: Options_contra, /, *, seed: int) -> list[Program]: ...


@dataclass(frozen=True)
class ToyExperiment(Generic[Options]):
    """An experiment with toy models: the programs to train, and the result that is computed from them."""

    options: type[Options]
    """The options that it reads: the dataclass of the section `toy`, or of the whole job if it needs several sections."""
    programs: BuildPrograms[Options]
    result: Callable[[Options, Sequence[TrainedProgram], ActiveRun], Result]
    """Computes the result from the trained programs; may reuse pieces of an earlier start from the run folder."""
