"""Runs the jobs on degeneracy and interaction bases."""

from pathlib import Path

from crux.degeneracy.options import ExperimentJob
from crux.runs.experiment import run_experiment


def run(config: ExperimentJob, *, folder: Path | None) -> None:
    """Run the experiment whose section the configuration has.

    Args:
        folder: the run folder that a sweep gives it; None: a new one.
    """
    section = config.section
    run_experiment(config, section=section, module=f"crux.degeneracy.experiments.{section.module}", folder=folder)
