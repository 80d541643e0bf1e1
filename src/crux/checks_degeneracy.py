"""What can be wrong with an experiment on learning coefficients, degeneracy or bases; answers before torch is imported."""

from crux.keys import refuse_others
from crux.schema import Config, Task, experiment_name

ALWAYS = (
    "experiment", "seed", "resume", "resume_from", "retry_failed", "output_dir", "sweep_name", "tracking", "debug", "trainer.progress",
)  # fmt: skip
"""What has a meaning for each of them, beside the task's own group."""


def check_degeneracy(config: Config, given: set[str]) -> None:
    """Keys of such an experiment: those that have a meaning there, with values that can be."""
    group, name = experiment_name(config)
    refuse_others(given, (group, *ALWAYS), experiment=f"{group}/{name}")
    match config.task:
        case Task.llc:
            _check_llc(config)
        case _:
            pass


def _check_llc(config: Config) -> None:
    llc = config.llc
    assert llc is not None
    if not llc.length > 0:
        raise ValueError(f"llc.length={llc.length}: must be more than 0")
    if not llc.cases:
        raise ValueError("llc.cases=[]: must name one or more of regular, monomials, linear_networks, kgons, escape")
