"""Run a job in this process, from the same overrides as on the command line."""

from collections.abc import Sequence

from crux.api.process_state import restore_process_state
from crux.api.run import Run
from crux.config.compose import compose_job
from crux.config.errors import UserError
from crux.launch.refusals import check_no_launcher_without_sweep
from crux.runs.start import start_job

ONE_JOB = (
    "crux.train runs one job; call it once per value, use sparsities=[…], ks=[…] or hook_points=[…] for several SAEs in one job, or run "
    "the grid with `python src/main.py -m …` and read it with crux.compare"
)


def train(overrides: Sequence[str] = ()) -> Run:
    """Run a job in this process and return its run, as `python src/main.py` does with the same overrides.

    `crux.train(["loss=e2e_ds", "layer=6"])` trains an SAE on the packaged model and evaluates it. Any other job works too, such as
    `["experiment=toy/basic"]`. Signal handlers, environment, seeds, threads, loggers and warning filters of the process are the same
    afterwards as before. Ctrl-C leaves a run folder that `["resume=true", …]` continues.

    Args:
        overrides: `key=value` or `group=option`, as on the command line.

    Raises:
        UserError: for a problem that the user can fix, before anything is trained.
        NonFiniteLossError: if the loss of a run stopped being a number.
    """
    if isinstance(overrides, str):
        raise UserError(f'overrides must be a list of strings: crux.train(["{overrides}"])')
    with restore_process_state():
        job, launcher = compose_job(overrides, grid_advice=ONE_JOB)
        check_no_launcher_without_sweep(launcher)
        folder = start_job(job, folder=None)
    if folder is None:
        raise UserError("this job has no run: use the command line for it")
    return Run(folder.path)
