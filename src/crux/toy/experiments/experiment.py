"""What a file in this folder offers as EXPERIMENT: programs to train, and the result that they lead to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Result
from crux.toy.program import Program, Trained

Options_contra = TypeVar("Options_contra", contravariant=True)
Options = TypeVar("Options")


@runtime_checkable
class BuildPrograms(Protocol[Options_contra]):
    """Returns what is to be trained, one program after the other.

    Raises:
        UserError: if the options are not what the experiment is about.
    """

    def __call__(self, options: Options_contra, /, *, seed: int) -> list[Program]: ...


@dataclass(frozen=True)
class ToyExperiment(Generic[Options]):
    """An experiment with toy models."""

    options: type[Options]
    """What it reads: the dataclass of the section `toy`, or the job's if it needs several sections."""
    programs: BuildPrograms[Options]
    result: Callable[[Options, Sequence[Trained], ActiveRun], Result]
    """Computes the result from the trained programs; takes pieces of an earlier start from the run's folder."""
