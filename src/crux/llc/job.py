"""Run a job that estimates local learning coefficients."""

from pathlib import Path

from crux.llc.options import LlcJob
from crux.runs.experiment import run_experiment
from crux.runs.run_folder import RunFolder


def run(config: LlcJob, *, folder: Path | None) -> RunFolder:
    """Run the experiment that the configuration names.

    Args:
        folder: the run folder, if a sweep has chosen one; None: create a new one.
    """
    module = f"crux.llc.experiments.{config.llc.experiment}"
    return run_experiment(config, section=config.llc, module=module, folder=folder)
