"""The launching process of a sweep: it starts the jobs that are not done, waits for them, and reports failures and results.

The sweep's state is on disk: a job's folder holds DONE, FAILED, or neither. Jobs may run in other processes and on other
machines that share the file system.
"""

import io
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import NamedTuple

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.table import Column, Table

from crux.config.console import make_console
from crux.config.errors import UserError
from crux.config.files import remove_temporaries
from crux.config.folder_name import shorten_name
from crux.config.messages import explain_user_error
from crux.config.schema import Job, ReportGeometry, to_plain
from crux.launch.cells import check_cell, remove_hydra_section
from crux.runs.checks import check_tracking, check_writable
from crux.runs.lock import lock_folder
from crux.runs.run_folder import RunFolder, find_same_run
from crux.runs.sweep import requested_uri, track_sweep
from crux.sae.options import ReportJob, Strategy


class SweepJob(NamedTuple):
    """One job of a sweep."""

    overrides: list[str]
    """The command line of the job."""
    config: DictConfig
    """The configuration composed from it."""
    folder: RunFolder

    @classmethod
    def from_overrides(cls, overrides: list[str], config: DictConfig) -> "SweepJob":
        """Return the job of a command line, with the folder that Hydra gives it."""
        place = Path(OmegaConf.select(config, "hydra.sweep.dir")) / OmegaConf.select(config, "hydra.sweep.subdir")
        return cls(overrides, config, RunFolder(place))

    @property
    def name(self) -> str:
        return self.folder.path.name


def make_common_overrides(config: DictConfig, lines: Sequence[str]) -> list[str]:
    """Return the overrides that are added to each job: the absolute path of the outputs folder, and the sweep's name if none is given.

    A grid without a name is named after its command line: the same line resumes it, another line is another sweep.
    """
    outputs = str(Path(OmegaConf.select(config, "output_dir")).resolve()).replace("'", "\\'")
    common = [f"output_dir='{outputs}'"]
    if OmegaConf.select(config, "sweep_name") is None:
        excluded = OmegaConf.select(config, "hydra.job.config.override_dirname.exclude_keys")
        named = sorted(line for line in lines if line.partition("=")[0].lstrip("+") not in excluded)
        if not named:
            raise UserError("-m starts a grid of jobs: give several values, such as layer=2,4,6, or sweep_name=<name>")
        name = shorten_name(re.sub(r"[^\w.,=+-]+", "_", " ".join(named)).strip("_"))
        common.append(f"sweep_name='{name}'")
    return common


Start = Callable[[Sequence[SweepJob]], Sequence[JobReturn]]
"""A function that passes jobs to Hydra's launcher and returns how each ended, in the same order."""


def launch(
    jobs: Sequence[SweepJob], *, start: Start, at_once: int | None, before_start: Callable[[Path], None]
) -> None:
    """Start the jobs that are new, were interrupted, or failed and are to be tried again; print the sweep's summary at the end.

    Args:
        at_once: maximum number of jobs per call of `start`; None: all.
        before_start: is called with the sweep's folder before any job is started. It raises an error if jobs of an earlier start may
            still be running although the process that launched them has ended.

    Raises:
        UserError, HydraException: if the sweep cannot be started, or is already running.
        SystemExit: with code 1 if a job has failed, now or before.
    """
    first = jobs[0].config  # for the keys that are the same in all jobs
    _check(jobs)
    folder = jobs[0].folder.path.parent
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder, what=f"sweep {folder.name}"):
        remove_temporaries(folder, below=False)  # a job may be writing in its folder
        before_start(folder)
        for job in jobs:
            if job.folder.failed and first.retry_failed:
                job.folder.clear_failure()
        todo = [job for job in jobs if not job.folder.done and not job.folder.failed]
        print(f"sweep {folder.name}: {_describe_counts(jobs, todo)}; {folder}", flush=True)
        with track_sweep(first, folder):
            lost = _start(todo, start=start, at_once=at_once) if todo else {}
            failures: dict[str, str] = {}
            for job in jobs:
                if job.folder.failed:
                    failures[job.name] = job.folder.failure_reason()
                elif not job.folder.done:
                    failures[job.name] = lost.get(job.name, "ended without a result: killed?")
            _summarise(folder, first)
            if failures:
                _print_failures(failures, folder, retried=first.retry_failed)
                sys.exit(1)


def _check(jobs: Sequence[SweepJob]) -> None:
    """Check that every subject can be reached, that no finished run would be overwritten, and that no two jobs share a folder."""
    first = jobs[0].config
    if OmegaConf.get_type(first) is ReportJob:
        raise UserError("experiment=report is one job: give sweep=<name>, without -m and without sweeps=")
    check_writable("output_dir", first.output_dir)
    if first.report_geometry is ReportGeometry.umap:
        from crux.sae.geometry.views import check_umap

        check_umap()
    if first.tracking.mlflow:
        check_tracking(requested_uri(first))
    if any(OmegaConf.select(job.config, "trainer.strategy") == Strategy.ddp for job in jobs):
        raise UserError(
            "trainer=ddp in a sweep: give each job one device (hydra/launcher=gpus), or start the runs one by one"
        )
    taken: dict[Path, SweepJob] = {}
    for job in jobs:
        if (other := taken.setdefault(job.folder.path, job)) is not job:
            differing = sorted(set(job.overrides) ^ set(other.overrides))
            raise UserError(f"jobs with {' and '.join(differing)} would share the folder {job.folder.path}")
        if job.folder.done:
            try:
                config = OmegaConf.to_object(remove_hydra_section(job.config))
            except OmegaConfBaseException:
                continue  # its values cannot be those of the finished run; the job itself will report what is wrong
            assert isinstance(config, Job)
            find_same_run(job.folder.path, to_plain(config))
    for job in jobs:
        check_cell(job, jobs=len(jobs), with_subject=True)


def _describe_counts(jobs: Sequence[SweepJob], todo: Sequence[SweepJob]) -> str:
    """Return the numbers of jobs in each state, without those that are 0: `9 jobs, 4 done before, 1 to resume`."""
    done, failed = sum(job.folder.done for job in jobs), sum(job.folder.failed for job in jobs)
    begun = sum(job.folder.checkpoint.exists() for job in todo)
    words = [(len(jobs), "jobs"), (done, "done before"), (failed, "failed before"), (begun, "to resume")]
    return ", ".join(f"{n} {word}" for n, word in words if n or word == "jobs")


def _start(todo: Sequence[SweepJob], *, start: Start, at_once: int | None) -> dict[str, str]:
    """Start the jobs and wait for them; return the names of those whose process died, each with the reason.

    These reasons are not written to disk, so that the next start resumes such jobs like interrupted ones. A job that fails by itself
    leaves FAILED in its folder.
    """
    lost: dict[str, str] = {}
    size = at_once or len(todo)
    for i in range(0, len(todo), size):
        batch = todo[i : i + size]
        try:
            for job, end in zip(batch, start(batch), strict=True):
                if end.status is JobStatus.FAILED:
                    lost[job.name] = f"its process ended: {' '.join(str(_find_error(end)).split())[:300]}"
        except Exception as error:
            if explain_user_error(error, overrides=[]) is not None:
                raise
            traceback.print_exc()
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            lost |= {job.name: reason for job in batch if not job.folder.done}
    return lost


def _find_error(end: JobReturn) -> Exception | None:
    """Return the exception with which a job failed."""
    try:
        with redirect_stderr(io.StringIO()):  # Hydra would print the job's command line
            return end.return_value
    except Exception as error:
        return error


def _summarise(folder: Path, config: DictConfig) -> None:
    """Write the sweep's report and print it."""
    from crux.sae.sweeps.report import write_report

    try:
        report = write_report(folder, at=config.report_l0, geometry=config.report_geometry)
    except UserError as error:  # no run has finished
        print(f"crux: {error}", file=sys.stderr)
        return
    except Exception:  # the jobs have ended, so a report that fails changes neither their state nor the exit code
        print(
            f"crux: the report of the sweep failed; its runs are in {folder}\n{traceback.format_exc()}", file=sys.stderr
        )
        return
    report.print()


def _print_failures(failures: Mapping[str, str], folder: Path, *, retried: bool) -> None:
    """Print the failed jobs and their reasons on standard error."""
    title = f"{len(failures)} failed" + ("" if retried else "; retry_failed=true tries them again")
    table = Table(Column("job", overflow="fold"), "reason", title=title, title_justify="left")
    for name, reason in failures.items():
        table.add_row(name, reason)
    console = make_console(width=140, stderr=True)
    console.print(table)
    console.print(f"more in <job>/FAILED, in {folder}", soft_wrap=True)
