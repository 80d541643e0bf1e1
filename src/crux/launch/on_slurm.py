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

POLL = 2.0
"""Initial seconds between queries of the queue."""
POLL_MOST = 30.0
"""Maximum seconds between queries of the queue."""
SETTLE = 15.0
"""Seconds that a result may take to appear on a shared file system after its job has left the queue."""
GRACE = 8.0
"""Seconds that stopped jobs have to record in MLflow that they were stopped."""

NOTE = ".slurm_jobs"
"""File in the sweep's folder with the number of the array that its jobs are in."""


def check_queue(folder: Path) -> None:
    """Check that no job of an earlier start of this sweep is still in the queue.

    Raises:
        UserError: if there is one, or if SLURM does not answer.
    """
    note = folder / NOTE
    if not note.exists():
        return
    array = note.read_text("utf-8").strip()
    still = find_queued(array) if shutil.which("squeue") is not None else None
    if still is None:
        raise UserError(
            f"SLURM cannot be asked here whether jobs of this sweep are in its queue (array {array}); "
            f"if you know that none is, remove {note}"
        )
    if still:
        raise UserError(f"{len(still)} jobs of this sweep are in SLURM's queue: wait for them, or run scancel {array}")


def run_on_slurm(
    jobs: Sequence[Work], *, submitit_folder: str, max_num_timeout: int, setup: Sequence[str], **options: Any
) -> list[JobReturn]:
    """Submit the jobs and wait for them; a job that the cluster loses is reported on the screen and stops no other.

    Raises:
        UserError: if sbatch rejects the options.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    for work in jobs:
        work.threads = options["cpus_per_task"]
    submitits = ("name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")  # submitit's own names
    known = {k if k in submitits else f"slurm_{k}": v for k, v in options.items() if v is not None}
    exports = [f"export PYTHONPATH={shlex.quote(environment_to_pass_on()['PYTHONPATH'])}"]
    if options["cpus_per_task"] is not None:  # since SLURM 22.05 srun would otherwise use one core only
        exports.append(f"export SRUN_CPUS_PER_TASK={options['cpus_per_task']}")
    executor = submitit.AutoExecutor(submitit_folder, cluster="slurm", slurm_max_num_timeout=max_num_timeout)
    executor.update_parameters(**known, slurm_setup=[*exports, *setup])
    try:
        with executor.batch():
            submitted = [executor.submit(work) for work in jobs]
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(
            f"hydra/launcher=slurm: sbatch rejects the options: {' '.join(str(error).split())[-300:]}"
        ) from error
    array = submitted[0].job_id.partition("_")[0]
    note = jobs[0].folder.parent / NOTE
    try:
        write_text(note, array + "\n")
        print(f"slurm: {len(jobs)} jobs in array {array}; logs in {Path(submitit_folder).parent}", flush=True)
        ended = _wait(jobs, submitted, array=array)
    except BaseException:
        _cancel(array)
        raise
    note.unlink()
    return ended


def _wait(jobs: "Sequence[Work]", submitted: "Sequence[Job[None]]", *, array: str) -> list[JobReturn]:
    running = dict(zip([job.job_id for job in submitted], zip(jobs, submitted, strict=True), strict=True))
    ended: dict[str, JobReturn] = {}
    gone: dict[str, float] = {}
    pause = POLL
    while running:
        time.sleep(pause)
        pause = min(pause * 1.2, POLL_MOST)
        there = find_queued(array)
        for job_id, (work, job) in list(running.items()):
            if job.paths.result_pickle.exists():
                error = job.exception()
            elif there is None or job_id in there:
                gone.pop(job_id, None)
                continue
            elif time.monotonic() - gone.setdefault(job_id, time.monotonic()) < SETTLE:
                pause = POLL
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
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode == 0:
        return set(found.stdout.split())
    if "Invalid job id" in found.stderr:  # all of its jobs ended some time ago
        return set()
    print(f"crux: squeue: {' '.join(found.stderr.split())}; asking again", file=sys.stderr)
    return None


def _cancel(array: str) -> None:
    subprocess.run(["scancel", array], check=False)
    deadline = time.monotonic() + GRACE
    while find_queued(array) and time.monotonic() < deadline:
        time.sleep(0.5)
