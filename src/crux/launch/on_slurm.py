"""Run the jobs of a sweep on a SLURM cluster with submitit, as one array; a job that times out is queued again and resumed."""

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn

from crux.config.errors import UserError
from crux.config.files import write_text
from crux.launch.work import Work, environment_to_pass_on

if TYPE_CHECKING:
    from submitit import Job

MIN_PAUSE = 2.0
"""Seconds between the first queries of the queue; the pauses grow."""
MAX_PAUSE = 30.0
"""Maximum seconds between queries of the queue."""
MAX_RESULT_DELAY = 15.0
"""Seconds that a result may take to appear on a shared file system after its job has left the queue."""
MAX_STOP_TIME = 8.0
"""Seconds that stopped jobs have to record in MLflow that they were stopped."""

ARRAY_FILE = ".slurm_jobs"
"""File in the sweep's folder with the number of the job array that was submitted, while its jobs may be in the queue."""


def check_queue(folder: Path) -> None:
    """Check that no job of an earlier start of this sweep is still in the queue.

    Raises:
        UserError: if there is one, or if SLURM does not answer.
    """
    array_file = folder / ARRAY_FILE
    if not array_file.exists():
        return
    array = array_file.read_text("utf-8").strip()
    queued = find_queued(array) if shutil.which("squeue") is not None else None
    if queued is None:
        raise UserError(
            f"SLURM cannot be asked here whether jobs of this sweep are in its queue (array {array}); "
            f"if you know that none is, remove {array_file}"
        )
    if queued:
        raise UserError(f"{len(queued)} jobs of this sweep are in SLURM's queue: wait for them, or run scancel {array}")


def run_on_slurm(
    jobs: Sequence[Work], *, submitit_folder: str, max_num_timeout: int, setup: Sequence[str], **options: Any
) -> list[JobReturn]:
    """Submit the jobs, wait until all have ended, and return how each ended, in the order of `jobs`.

    A job that the cluster loses is reported on the screen and returned as failed; the other jobs continue.

    Args:
        options: the other options of `hydra.launcher`, which are named as in submitit or sbatch.

    Raises:
        UserError: if sbatch rejects the options.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    for work in jobs:
        work.threads = options["cpus_per_task"]
    # submitit has names of its own for these options; it passes all others to sbatch, and expects the prefix slurm_ in their names
    submitit_names = ("name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")
    parameters = {
        key if key in submitit_names else f"slurm_{key}": value for key, value in options.items() if value is not None
    }
    exports = [f"export PYTHONPATH={shlex.quote(environment_to_pass_on()['PYTHONPATH'])}"]
    if options["cpus_per_task"] is not None:  # since SLURM 22.05 srun would otherwise use one core only
        exports.append(f"export SRUN_CPUS_PER_TASK={options['cpus_per_task']}")
    executor = submitit.AutoExecutor(submitit_folder, cluster="slurm", slurm_max_num_timeout=max_num_timeout)
    executor.update_parameters(**parameters, slurm_setup=[*exports, *setup])
    try:
        with executor.batch():
            submitted = [executor.submit(work) for work in jobs]
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(
            f"hydra/launcher=slurm: sbatch rejects the options: {' '.join(str(error).split())[-300:]}"
        ) from error
    array = submitted[0].job_id.partition("_")[0]  # ids are <array>_<index>
    array_file = jobs[0].folder.parent / ARRAY_FILE
    try:
        write_text(array_file, array + "\n")
        logs = Path(submitit_folder).parent  # the last part of submitit_folder is the id of each job
        print(f"slurm: {len(jobs)} jobs in array {array}; logs in {logs}", flush=True)
        ended = _wait(jobs, submitted, array=array)
    except BaseException:
        _cancel(array)
        raise
    array_file.unlink()
    return ended


def _wait(jobs: "Sequence[Work]", submitted: "Sequence[Job[None]]", *, array: str) -> list[JobReturn]:
    """Wait until all jobs have ended, and return how each ended; `submitted` has submitit's job for each of `jobs`."""
    running = {job.job_id: (work, job) for work, job in zip(jobs, submitted, strict=True)}
    ended: dict[str, JobReturn] = {}
    left_queue_at: dict[str, float] = {}  # time at which a job without a result was first seen to have left the queue
    pause = MIN_PAUSE
    while running:
        time.sleep(pause)
        pause = min(pause * 1.2, MAX_PAUSE)
        queued = find_queued(array)
        for job_id, (work, job) in list(running.items()):
            if job.paths.result_pickle.exists():
                error = job.exception()
            elif queued is None or job_id in queued:
                left_queue_at.pop(job_id, None)
                continue
            elif job_id not in left_queue_at:
                left_queue_at[job_id] = time.monotonic()
                pause = MIN_PAUSE  # its result may appear soon
                continue
            elif time.monotonic() - left_queue_at[job_id] < MAX_RESULT_DELAY:
                pause = MIN_PAUSE
                continue
            else:
                error = RuntimeError(f"SLURM job {job_id} left the queue without a result; its log: {job.paths.stderr}")
            del running[job_id]
            ended[work.name] = work.to_job_return(error)
            print(f"[{len(ended)}/{len(jobs)}] {work.name}: {work.describe_end(error)}", flush=True)
    return [ended[work.name] for work in jobs]


def find_queued(array: str) -> set[str] | None:
    """Return the jobs of an array that are pending, running or being queued again; None if SLURM does not answer."""
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={array}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode == 0:
        return set(answer.stdout.split())
    if "Invalid job id" in answer.stderr:  # all of its jobs ended some time ago
        return set()
    print(f"crux: squeue: {' '.join(answer.stderr.split())}; it will be queried again", file=sys.stderr)
    return None


def _cancel(array: str) -> None:
    """Cancel the jobs of an array, and wait until they have left the queue, but not longer than MAX_STOP_TIME."""
    subprocess.run(["scancel", array], check=False)
    deadline = time.monotonic() + MAX_STOP_TIME
    while find_queued(array) and time.monotonic() < deadline:
        time.sleep(0.5)
