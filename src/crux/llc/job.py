"""A job that estimates local learning coefficients."""

from pathlib import Path

from crux.llc.options import LlcJob
from crux.runs.experiment import run_experiment


def run(config: LlcJob, *, folder: Path | None) -> None:
    """Run the experiment that the configuration names.

    Args:
        folder: the run folder that a sweep gives it; None: a new one.
    """
    module = f"crux.llc.experiments.{config.llc.experiment}"
    run_experiment(config, section=config.llc, module=module, folder=folder)
