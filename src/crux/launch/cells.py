"""Check every job of a sweep before the first one starts, so that a cell of the grid that cannot work is found at once. Torch-free."""

from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crux.config.compose import build_job
from crux.config.errors import UserError
from crux.config.messages import explain_user_error

if TYPE_CHECKING:
    from crux.launch.sweep import SweepJob

MAX_JOBS = 10_000
"""Largest number of jobs of a sweep. Composing so many takes half an hour; a larger grid is a slip."""


def check_count(n: int) -> None:
    """Check the number of jobs of a grid."""
    if n > MAX_JOBS:
        raise UserError(f"-m: the grid has {n:,} jobs; at most {MAX_JOBS:,} are possible")


def check_cell(job: "SweepJob", *, jobs: int, with_subject: bool = False) -> None:
    """Check the configuration of a job that is not done, as the job itself would at its start.

    Args:
        jobs: the number of jobs of the sweep.
        with_subject: also check that the subject can be reached and that the configuration fits it; a hub model is fetched for that.

    Raises:
        UserError: if it cannot work; the line names it.
    """
    if job.folder.done:
        return
    try:
        config = build_job(remove_hydra_section(job.config), job.overrides)
        if with_subject:
            config.check_subject()
    except (UserError, OmegaConfBaseException) as error:
        reason = explain_user_error(error, overrides=job.overrides)
        raise UserError(f"job {job.name} of the grid: {reason}; nothing was started" if jobs > 1 else reason) from error


def remove_hydra_section(config: DictConfig) -> DictConfig:
    """Return a copy of a composed configuration without the section `hydra`, which is no part of a job."""
    copy = config.copy()
    OmegaConf.set_struct(copy, False)
    del copy["hydra"]
    return copy
