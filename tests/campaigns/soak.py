"""Soak test: many short runs in one process, then a sweep with as many jobs, while memory and open files are watched.

The last case is the sweep; every other one is a single run, whose kind follows from the case's number. After a warm-up, neither the
memory nor the number of open files may grow with the number of runs or jobs.
"""

import contextlib
import functools
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from omegaconf import DictConfig

from crux.launch.release_memory import release_memory
from tests.campaigns.forks import import_everything
from tests.campaigns.outcomes import Outcomes, run_campaign

SHORT = (
    "debug=limit", "trainer.max_steps=2", "evaluation.tokens=512", "evaluation.val_tokens=512", "trainer.progress=false",
)  # fmt: skip

KINDS: tuple[tuple[str, ...], ...] = (
    (*SHORT, "loss=local", "layer=2", "evaluation.latents=0", "tracking=none"),
    (*SHORT, "loss=e2e_ds", "layer=4", "evaluation.latents=2", "tracking=none"),
    (*SHORT, "loss=local", "layer=2", "evaluation.latents=0"),  # with MLflow
    (*SHORT, "loss=local", "sparsities=[1,2]", "evaluation.latents=0", "tracking=none"),
    (*SHORT, "loss=local", "optimizer.lr=-1", "tracking=none"),  # a mistake
)
"""The command lines of the runs; their seed is the number of the case."""

MAX_GROWTH = 1.0
"""Largest growth of the resident memory per run or job, in MB. A run of these holds about 100 MB while it runs."""

MAX_FILES = 3
"""Largest growth of the number of open files from the warm-up to the end: some libraries open a file late."""


class Usage(NamedTuple):
    """What this process holds."""

    megabytes: float
    """Resident memory."""
    files: int
    """Open files, pipes and sockets."""

    @classmethod
    def measure(cls) -> "Usage":
        """Measure as it is: a sweep itself has to return what its jobs have left."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd")))


def run_here(words: tuple[str, ...]) -> tuple[int, str]:
    """Run a command line in this process; return its exit code and its output."""
    from crux.cli import main

    out = io.StringIO()
    sys.argv = ["main.py", *words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main()
        except SystemExit as stop:
            return (stop.code if isinstance(stop.code, int) else 1), out.getvalue()
    return 0, out.getvalue()


def campaign(outcomes: Outcomes, cases: int, seed: int, only: int | None) -> None:
    """Run the cases; the case `cases` is the sweep."""
    import_everything()
    with tempfile.TemporaryDirectory() as folder:
        usage: list[Usage] = []
        for case in range(cases) if only is None else [only] * (only < cases):
            kind = KINDS[case % len(KINDS)]
            code, out = run_here((*kind, f"seed={seed + case}", f"output_dir={folder}"))
            _count(outcomes, case, kind, code, expected=2 if "optimizer.lr=-1" in kind else 0, out=out)
            release_memory()  # a single run has a process of its own, so that crux leaves this to the end of the process
            usage.append(Usage.measure())
        if only is None:
            _compare(outcomes, "single runs", usage[min(2 * len(KINDS), cases // 2) :], case=cases)
        if only is None or only == cases:
            code, out, jobs = run_sweep(seed, cases, folder)
            done = len(list(Path(folder, "sweeps", "soak").glob("*/DONE")))
            _count(
                outcomes, cases, ("-m",), code if done == cases else 1, expected=0, out=f"{done} of {cases} done: {out}"
            )
            _compare(outcomes, "sweep", jobs[min(2 * len(KINDS), cases // 2) :], case=cases)


def run_sweep(seed: int, n: int, folder: str) -> tuple[int, str, list[Usage]]:
    """Run a sweep of n jobs in this process; return its exit code, its output, and the usage at the end of each job."""
    from crux import cli

    usage: list[Usage] = []

    job = cli.job

    @functools.wraps(job)  # Hydra looks at the name and the module
    def measured_job(cfg: DictConfig) -> None:
        job(cfg)
        usage.append(Usage.measure())

    seeds = ",".join(str(seed + i) for i in range(n))
    with patch.object(cli, "job", measured_job):
        code, out = run_here(("-m", *KINDS[0], f"seed={seeds}", "sweep_name=soak", f"output_dir={folder}"))
    return code, out, usage


def _count(outcomes: Outcomes, case: int, kind: tuple[str, ...], code: int, *, expected: int, out: str) -> None:
    name = "sweep" if kind == ("-m",) else "run" if expected == 0 else "mistake"
    if code == expected:
        outcomes.held(f"{name}: exit code {code}")
    else:
        outcomes.fell_short(f"{name}: exit code {code}", case=case, what=" ".join(out.split())[-300:])


def _compare(outcomes: Outcomes, what: str, usage: list[Usage], *, case: int) -> None:
    """Compare what is held at the end with what was held at the beginning; `usage` has what was held after each run or job."""
    if len(usage) < 2:
        outcomes.fell_short(f"{what}: too few to compare", case=case, what=f"{len(usage)} after the warm-up")
        return
    quarter = max(1, len(usage) // 4)  # means over several runs
    first = sum(u.megabytes for u in usage[:quarter]) / quarter
    last = sum(u.megabytes for u in usage[-quarter:]) / quarter
    growth = (last - first) / (len(usage) - quarter)
    files = usage[-1].files - usage[0].files
    words = (
        f"{first:.1f} MB to {last:.1f} MB, {growth:+.3f} MB per run; {usage[0].files} to {usage[-1].files} open files"
    )
    print(f"{what}: {words}", flush=True)
    if growth > MAX_GROWTH or files > MAX_FILES:
        outcomes.fell_short(f"{what}: grows", case=case, what=words)
    else:
        outcomes.held(f"{what}: memory and open files do not grow")


if __name__ == "__main__":
    run_campaign(campaign, name="soak", cases=100)
