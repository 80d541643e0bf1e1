"""Kill the first start while MLflow's database is created; the next start must be able to use what is left.

In half of the cases the database is created in place, as older versions of crux and MLflow itself do, which leaves half-created databases.
"""

import os
import random
import shutil
import signal
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

from tests.campaigns.forks import import_everything, start_command, wait_for_command
from tests.campaigns.outcomes import Outcomes, run_campaign
from tests.campaigns.tracking_faults import JOB, NEXT_JOB, check_outcome, compare, run

CREATION_SECONDS = 5.0
"""Seconds that the creation of a database takes at least, over which the kills are spread."""

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def campaign(outcomes: Outcomes, cases: int, seed: int, only: int | None) -> None:
    """Run the cases: each signal in turn, in place or not, at a moment drawn from the seed."""
    import_everything()
    root = Path(tempfile.mkdtemp(prefix="migration_"))
    try:
        for case in range(cases) if only is None else [only]:
            rng = random.Random(f"{seed}/{case}")
            number, in_place = SIGNALS[case % len(SIGNALS)], case // len(SIGNALS) % 2 == 1
            folder = root / str(case)
            folder.mkdir()
            name = f"{number.name}, {'created in place by MLflow' if in_place else 'created by crux'}"
            delay = rng.uniform(0.0, CREATION_SECONDS)
            kill = kill_mlflow if in_place else kill_crux
            problems = kill(folder / "outputs", number, delay=delay) + try_next_start(folder / "outputs")
            if problems:
                outcomes.fell_short(name, case=case, what=f"after {delay:.2f} s: {'; '.join(problems)[:1500]}")
            else:
                outcomes.held(name)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def kill_crux(outputs: Path, number: signal.Signals, *, delay: float) -> list[str]:
    """Kill the first start of crux some time after it has begun to create the database; return what was wrong."""
    log = outputs.with_name("killed_log")
    started = time.monotonic()
    line = (*JOB, "trainer.max_steps=100000", f"output_dir={outputs}")
    pid = start_command(line, folder=log, environment={}, before=None)
    wait_for_file(outputs, ".mlflow.db.new*")
    time.sleep(delay)
    os.kill(pid, number)
    stopped = time.monotonic()
    outcome = wait_for_command(pid, folder=log, started=started, timeout=60)
    problems = check_outcome(outcome, {-9, 130, 143})
    took = time.monotonic() - stopped
    return problems + ([f"{number.name} ended it after {took:.1f} s"] if took > 5 else [])


def kill_mlflow(outputs: Path, number: signal.Signals, *, delay: float) -> list[str]:
    """Kill MLflow while it creates the database in its place; nothing can be wrong with that."""
    outputs.mkdir(parents=True)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        from mlflow import MlflowClient

        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        MlflowClient(f"sqlite:///{outputs}/mlflow.db").search_experiments()
        os._exit(0)
    wait_for_file(outputs, "mlflow.db")
    time.sleep(delay)
    os.kill(pid, number)
    os.waitpid(pid, 0)
    return []


def wait_for_file(outputs: Path, pattern: str) -> None:
    """Wait until there is a file with such a name in the outputs folder."""
    deadline = time.monotonic() + 120
    while not list(outputs.glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.005)


def try_next_start(outputs: Path) -> list[str]:
    """Start a job; return what was wrong with it or with the database afterwards."""
    outcome = run(NEXT_JOB, outputs, uri=None)
    problems = check_outcome(outcome, {0})
    if "cannot use" in outcome.err or not list(outputs.glob("runs/*/DONE")):
        problems.append(f"the database cannot be used: {outcome.err[-500:]}")
    with closing(sqlite3.connect(outputs / "mlflow.db", timeout=30)) as connection:
        if connection.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
            problems.append("the database is damaged")
        if connection.execute("PRAGMA journal_mode").fetchall() != [("wal",)]:
            problems.append("the database is not in WAL mode")
    if leftovers := [path.name for path in outputs.glob(".mlflow.db.new*")]:
        problems.append(f"left behind: {leftovers}")
    return problems + compare(outputs, outputs / "mlflow.db")


if __name__ == "__main__":
    run_campaign(campaign, name="interrupted migrations", cases=50)
