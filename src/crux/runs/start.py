"""Start a job whose configuration has been composed and checked."""

from pathlib import Path
from pkgutil import resolve_name

from crux.config.schema import Job
from crux.runs.checks import check_run
from crux.runs.run_folder import RunFolder


def start_job(config: Job, *, folder: Path | None) -> RunFolder | None:
    """Check the folders, the tracking server and the subject, then run the job; return its run folder, None if it has none.

    Args:
        folder: the run folder, if a sweep has assigned one; None: a new one.

    Raises:
        UserError: for a problem that the user can fix.
    """
    if folder is not None:
        config.resume = False  # a sweep's jobs are resumed in any case
    check_run(config)
    config.check_subject()
    return resolve_name(config.runner)(config, folder=folder)
