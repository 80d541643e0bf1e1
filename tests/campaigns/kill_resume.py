"""Kill jobs at random moments and at every file operation, resume them, and compare them with uninterrupted ones.

    python -m tests.campaigns.kill_resume --cases 200 --seed 0

A case draws a job, a signal (SIGKILL, SIGTERM or SIGINT), its moment (a random time, or just before a random file operation), whether the
resumed job is killed again, and whether the outputs are on another file system. It holds if files and metrics equal those of an
uninterrupted job bit for bit, no other file is left, MLflow has the same runs, all FINISHED, with each row once, and TERM and INT end
the process within five seconds.
"""

import os
import random
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.campaigns.finished_run import FinishedJob, compare_jobs, compare_mlflow, read_job
from tests.campaigns.forks import CommandOutcome, import_everything, run_command, start_command, wait_for_command
from tests.campaigns.kills import FileOperations
from tests.campaigns.outcomes import Outcomes, run_campaign
from tests.campaigns.resumable_jobs import JOBS, shorten_sources

TIMEOUT = 180.0
"""Seconds after which a job counts as hanging."""

MAX_SECONDS_TO_END = 5.0
"""Seconds within which SIGTERM and SIGINT must end a job."""

WEIGHTS = {"sweep": 0.3}
"""How often a job is drawn; 1 if not given. A sweep takes as long as four jobs."""


class Kill(NamedTuple):
    """When a process is killed, and how."""

    number: signal.Signals
    at_operation: bool
    """True: before a file operation; False: at a time."""
    part: float
    """The moment, as a share of the file operations or of the seconds of the uninterrupted job."""


class Case(NamedTuple):
    """A job, and when it is killed."""

    job: str
    kills: tuple[Kill, ...]
    """One, or two if the resumed job is killed again."""
    other_file_system: bool

    def __str__(self) -> str:
        kills = [
            f"{kill.number.name} at {kill.part:.3f} of the {'operations' if kill.at_operation else 'time'}"
            for kill in self.kills
        ]
        return f"{self.job}, {', then '.join(kills)}{', in /dev/shm' if self.other_file_system else ''}"


class Whole(NamedTuple):
    """An uninterrupted job."""

    result: FinishedJob
    operations: int
    seconds: float


def draw_case(seed: int, number: int) -> Case:
    """Return a case; it depends only on the seed and its number."""
    random_numbers = random.Random(f"{seed} {number}")
    job = random_numbers.choices(list(JOBS), [WEIGHTS.get(name, 1.0) for name in JOBS])[0]
    kills = [
        Kill(
            random_numbers.choices([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], [8, 1, 1])[0],
            random_numbers.random() < 0.6,
            random_numbers.random(),
        )
        for _ in range(2)
    ]
    return Case(job, tuple(kills[: random_numbers.choices([1, 2], [4, 1])[0]]), random_numbers.random() < 0.3)


class Campaign:
    """The work of the campaign: a folder with the cache, an empty tracking database, and the uninterrupted jobs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            "CRUX_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true",
            "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0",
        }  # fmt: skip
        self.whole: dict[str, Whole] = {}
        self.make_database()

    def make_database(self) -> None:
        """Create a database with MLflow's tables, since its migration would be most of a short job."""
        self.run("local", self.folder / "first", tracking="mlflow")

    def run(
        self, job: str, place: Path, *more: str, tracking: str = "mlflow", counted: FileOperations | None = None
    ) -> CommandOutcome:
        """Run a job to its end."""

        def prepare() -> None:
            shorten_sources()
            if counted is not None:
                counted.install()

        return run_command(
            self.words(job, place, *more, tracking=tracking),
            folder=place,
            environment=self.environment,
            timeout=TIMEOUT,
            before=prepare,
        )

    def words(self, job: str, place: Path, *more: str, tracking: str = "mlflow") -> list[str]:
        """Return the command line of a job."""
        return [
            *JOBS[job],
            "trainer.progress=false",
            f"tracking={tracking}",
            f"output_dir={place / 'outputs'}",
            *more,
        ]

    def find_whole(self, job: str) -> Whole:
        """Return the uninterrupted job, run when it is first needed."""
        if job not in self.whole:
            place = self.folder / f"whole_{job}"
            self.run(job, self.folder / f"warm_{job}")  # so that the text is in the cache
            operations = FileOperations([place], at=None, number=signal.SIGKILL)
            outcome = self.run(job, place, counted=operations)
            assert outcome.code == 0, f"{job}: {outcome.err}"
            self.whole[job] = Whole(read_job(place / "outputs"), operations.count, outcome.seconds)
        return self.whole[job]

    def kill(self, case: Case, kill: Kill, place: Path, *more: str) -> CommandOutcome:
        """Start a job and kill it."""
        whole = self.find_whole(case.job)
        at = 1 + int(kill.part * whole.operations) if kill.at_operation else None
        operations = FileOperations([place], at=at, number=kill.number)

        def prepare() -> None:
            shorten_sources()
            operations.install()

        started = time.monotonic()
        pid = start_command(
            self.words(case.job, place, *more), folder=place, environment=self.environment, before=prepare
        )
        if kill.at_operation:
            return wait_for_command(pid, folder=place, started=started, timeout=TIMEOUT)
        time.sleep(kill.part * whole.seconds)
        with suppress(ProcessLookupError):
            os.kill(pid, kill.number)
        killed = time.monotonic()
        outcome = wait_for_command(pid, folder=place, started=started, timeout=TIMEOUT)
        return outcome._replace(seconds=time.monotonic() - killed)  # how long it took to end

    def finish(self, job: str, place: Path) -> CommandOutcome:
        """Resume a job until it is done, as a user would; start it anew if no run folder exists."""
        if job == "sweep":
            return self.run(job, place)
        outcome = self.run(job, place, "resume=true")
        if "no unfinished run" in outcome.err and not list((place / "outputs").glob("runs/*/DONE")):
            return self.run(job, place)
        return outcome

    def try_case(self, case: Case, place: Path) -> str | None:
        """Run a case; return what fell short, None if it held."""
        whole = self.find_whole(case.job)
        for i, kill in enumerate(case.kills):
            more = ["resume=true"] if i and case.job != "sweep" else []
            outcome = self.kill(case, kill, place, *more)
            if outcome.has_traceback:
                return f"traceback of the killed job: {outcome.err.splitlines()[-1]}"
            if outcome.timed_out:
                return "the killed job hangs"
            if not kill.at_operation and kill.number != signal.SIGKILL and outcome.seconds > MAX_SECONDS_TO_END:
                return f"{kill.number.name} ended the job after {outcome.seconds:.0f} s"
        outcome = self.finish(case.job, place)
        if outcome.has_traceback:
            return f"traceback: {outcome.err.splitlines()[-1]}"
        done_before = "no unfinished run" in outcome.err and list((place / "outputs").glob("runs/*/DONE"))
        if outcome.code and not done_before:
            return f"exit code {outcome.code}: {' '.join(outcome.err.split())[-300:]}"
        result = read_job(place / "outputs")
        return compare_jobs(result, whole.result) or compare_mlflow(result, whole.result)


def campaign(outcomes: Outcomes, cases: int, seed: int, only: int | None) -> None:
    """Run the cases."""
    import_everything()
    with tempfile.TemporaryDirectory(prefix="kills_") as folder, tempfile.TemporaryDirectory(dir=_other()) as other:
        work = Campaign(Path(folder))
        for number in range(cases) if only is None else [only]:
            case = draw_case(seed, number)
            place = Path(other if case.other_file_system else folder) / f"case_{number}"
            problem = work.try_case(case, place)
            kinds = "+".join(kill.number.name for kill in case.kills)
            if problem is None:
                outcomes.held(f"{kinds}: resumed, bit for bit, MLflow agrees")
            else:
                outcomes.fell_short(problem.partition(":")[0], case=number, what=f"{case}: {problem}")
            shutil.rmtree(place, ignore_errors=True)


def _other() -> str | None:
    """Return a folder on another file system than the temporary folder; None if there is none."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


if __name__ == "__main__":
    run_campaign(campaign, name="kill and resume", cases=200)
