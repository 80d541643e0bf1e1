"""Runs the jobs on degeneracy and interaction bases."""

from pathlib import Path

from crux.degeneracy.options import ExperimentJob
from crux.runs.experiment import run_experiment
from crux.runs.run_folder import RunFolder


def run(config: ExperimentJob, *, folder: Path | None) -> RunFolder:
    """Run the experiment whose section the configuration has.

    Args:
        folder: the run folder, if a sweep has assigned one; None: a new one.
    """
    section = config.section
    return run_experiment(
        config, section=section, module=f"crux.degeneracy.experiments.{section.module}", folder=folder
    )
