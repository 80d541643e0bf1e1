"""Runs the jobs of the degeneracy and interaction-basis experiments."""

from pathlib import Path

from crux.degeneracy.options import ExperimentJob
from crux.runs.experiment import run_experiment
from crux.runs.run_folder import RunFolder


def run(config: ExperimentJob, *, folder: Path | None) -> RunFolder:
    """Run the experiment of a job.

    Args:
        folder: the run folder given by a sweep; None: create a new one.
    """
    section = config.section
    return run_experiment(
        config, section=section, module=f"crux.degeneracy.experiments.{section.module}", folder=folder
    )
