"""Faults of the tracking server and database at the start, in the middle and at the end of a run, and stops during each fault.

A run must be trained as without the fault: exit code 0, at most one warning, no traceback. After the next start, which finds no fault,
MLflow must show exactly what the run folders hold: each run once and in its true state, each row once. A URI that is a mistake in
itself ends the run at once with one line.
"""

import json
import os
import random
import shutil
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from sqlite3 import dbapi2
from typing import Any, NamedTuple

from tests.campaigns.faulty_server import FaultyServer, Mode, faulty_server
from tests.campaigns.forks import CommandOutcome, import_everything, start_command, wait_for_command
from tests.campaigns.outcomes import Outcomes, run_campaign

N_STEPS = 60
JOB = (
    "loss=local", "layer=2", f"trainer.max_steps={N_STEPS}", "trainer.checkpoint_every=10", "trainer.log_every=2", "trainer.val_every=30",
    "trainer.progress=false", "evaluation.tokens=2048", "evaluation.val_tokens=512", "evaluation.latents=0", "data.max_tokens=100000",
    "trainer.batch=2",
)  # fmt: skip
"""A run of some seconds with 30 rows and two short evaluations."""

NEXT_JOB = (*JOB, "trainer.max_steps=2", "seed=1")
"""The next start of a job with the same outputs folder."""

STOP_SECONDS = 5.0
"""Seconds within which Ctrl-C and SIGTERM must end a run."""

EXTRA_SECONDS = 30.0
"""Seconds that a fault may add to a run, most of them at its end; the machine may be busy."""

MOMENTS = ("start", "middle", "end")

BAD_URIS = (
    "elsewhere://x", "http://h:abc", "http://h:99999", "https://", "file:./mlruns", "file:///tmp/mlruns", "mlruns", "sqlite://",
    "sqlite:////tmp", "postgresql://u@h:123456/d",
)  # fmt: skip

MISSING_DRIVERS = (
    "postgresql://u:secret@127.0.0.1:9/d",
    "mysql+pymysql://u@127.0.0.1:9/d",
    "mssql+pyodbc://u@127.0.0.1:9/d",
)


class Fault(NamedTuple):
    """A fault of the server or the database."""

    name: str
    where: str
    """`server`, `database`, or `uri`: the run is given a URI with which MLflow can do nothing."""
    begin: Callable[["Case"], None]
    """Called when the fault begins."""
    end: Callable[["Case"], None]
    """Called when it ends."""
    moments: tuple[str, ...] = MOMENTS


class Case(NamedTuple):
    """One run with a fault."""

    outputs: Path
    database: Path
    server: FaultyServer | None
    kept: dict[str, Any]
    """Things that the beginning of a fault leaves for its end."""


def set_mode(mode: Mode) -> Callable[[Case], None]:
    def begin(case: Case) -> None:
        assert case.server is not None
        case.server.set_mode(mode)

    return begin


def stop_server(case: Case) -> None:
    assert case.server is not None
    os.killpg(case.server.server, signal.SIGSTOP)


def continue_server(case: Case) -> None:
    assert case.server is not None
    os.killpg(case.server.server, signal.SIGCONT)
    time.sleep(1)


def lock_database(case: Case) -> None:
    case.database.parent.mkdir(parents=True, exist_ok=True)
    holder = sqlite3.connect(case.database, isolation_level=None, timeout=30)
    holder.execute("BEGIN EXCLUSIVE")
    case.kept["holder"] = holder


def unlock_database(case: Case) -> None:
    case.kept.pop("holder").close()


def delete_database(case: Case) -> None:
    for path in case.outputs.glob("mlflow.db*"):
        path.unlink()


def limit_database(pragma: str) -> Callable[[Case], None]:
    """Return a function after which every new and every used connection to a database has this limit."""

    def begin(case: Case) -> None:
        (case.outputs / "limit").write_text(pragma)

    return begin


def unlimit_database(case: Case) -> None:
    (case.outputs / "limit").unlink()


def overwrite_database(case: Case) -> None:
    case.outputs.mkdir(parents=True, exist_ok=True)
    case.database.write_text("not a database, though of some length\n" * 100)


def delete_experiment(case: Case) -> None:
    with closing(sqlite3.connect(case.database, timeout=30)) as connection, connection:
        connection.execute("UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = 'crux'")


def restore_experiment(case: Case) -> None:
    with closing(sqlite3.connect(case.database, timeout=30)) as connection, connection:
        connection.execute("UPDATE experiments SET lifecycle_stage = 'active'")


def delete_run(case: Case) -> None:
    with closing(sqlite3.connect(case.database, timeout=30)) as connection, connection:
        connection.execute("DELETE FROM metrics")
        connection.execute("DELETE FROM latest_metrics")
        for table in ("params", "tags", "runs"):
            connection.execute(f"DELETE FROM {table}")


def nothing(case: Case) -> None:
    pass


FAULTS = (
    Fault("refuses", "server", set_mode("refuse"), set_mode("pass")),
    Fault("hangs", "server", set_mode("hang"), set_mode("pass")),
    Fault("is stopped and continues", "server", stop_server, continue_server),
    Fault("answers with 500", "server", set_mode("500"), set_mode("pass")),
    Fault("loses answers", "server", set_mode("lose"), set_mode("pass")),
    Fault("is locked", "database", lock_database, unlock_database),
    Fault("is deleted", "database", delete_database, nothing, ("middle", "end")),
    Fault("is full", "database", limit_database("PRAGMA max_page_count = 1"), unlimit_database),
    Fault("is read-only", "database", limit_database("PRAGMA query_only = 1"), unlimit_database),
    Fault("is not a database", "database", overwrite_database, delete_database, ("start",)),
    Fault("has its experiment deleted", "database", delete_experiment, restore_experiment, ("middle", "end")),
    Fault("has its runs deleted", "database", delete_run, nothing, ("middle", "end")),
)
STOPS = (signal.SIGINT, signal.SIGTERM)

KINDS = (
    *((fault, moment, "stays") for fault in FAULTS for moment in fault.moments),
    *((fault, "middle", "passes") for fault in FAULTS if fault.end is not nothing and "middle" in fault.moments),
    *((fault, "middle", stop.name) for fault in FAULTS[:6] for stop in STOPS),
    *((None, uri, "mistake") for uri in BAD_URIS),
    *((None, uri, "driver") for uri in MISSING_DRIVERS),
)
"""What, when, and what follows: the fault stays until the end, passes during the run, or the run is stopped while it lasts."""


def campaign(outcomes: Outcomes, cases: int, seed: int, only: int | None) -> None:
    """Run the cases: each of KINDS in turn, at moments drawn from the seed."""
    try_cases(outcomes, range(cases) if only is None else [only], seed=seed)


def try_cases(outcomes: Outcomes, numbers: Sequence[int], *, seed: int) -> None:
    """Run the cases with these numbers."""
    import_everything()
    root = Path(tempfile.mkdtemp(prefix="tracking_faults_"))
    try:
        needed = any(
            fault is not None and fault.where == "server" for fault, *_ in (KINDS[n % len(KINDS)] for n in numbers)
        )
        with (
            faulty_server(root / "server") if needed else nullcontext() as server,
            template_database(root / "template"),
        ):
            for case in numbers:
                kind = KINDS[case % len(KINDS)]
                rng = random.Random(f"{seed}/{case}")
                folder = root / str(case)
                if kind[2] == "mistake":
                    name, problems = f"URI {kind[2]}", try_mistake(folder, kind[1])
                elif kind[2] == "driver":
                    name, problems = "driver missing", try_driver(folder, kind[1])
                else:
                    fault, moment, then = kind
                    assert fault is not None
                    name = f"{fault.where} {fault.name}"
                    problems = try_fault(
                        folder, fault, moment, then, rng=rng, server=server, template=root / "template"
                    )
                if problems:
                    outcomes.fell_short(name, case=case, what=f"{kind[1]}, {kind[2]}: {'; '.join(problems)[:1500]}")
                else:
                    outcomes.held(f"{name}, {kind[2]}")
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def template_database(folder: Path) -> Iterator[None]:
    """Make the database that cases begin with, since creating one takes many seconds; they may begin without one too."""
    outcome = run(NEXT_JOB, folder, uri=None)
    if outcome.code != 0:
        raise RuntimeError(outcome.err)
    yield


def run(words: tuple[str, ...], outputs: Path, *, uri: str | None) -> CommandOutcome:
    """Run a command line to its end."""
    started = time.monotonic()
    pid = start(words, outputs, uri=uri)
    return wait_for_command(pid, folder=outputs.with_name(outputs.name + "_log"), started=started, timeout=180)


def start(words: tuple[str, ...], outputs: Path, *, uri: str | None) -> int:
    given = (f"tracking.uri='{uri}'",) if uri is not None else ()
    line = (*words, *given, f"output_dir={outputs}")
    log = outputs.with_name(outputs.name + "_log")
    return start_command(line, folder=log, environment={}, before=lambda: install_limits(outputs / "limit"))


def install_limits(file: Path) -> None:
    """Make every statement on a sqlite database obey the limit in a file, as long as the file exists."""
    original = sqlite3.connect

    class Limited(sqlite3.Connection):
        def cursor(self, *args: Any, **kwargs: Any) -> sqlite3.Cursor:
            obey(super().cursor())
            return super().cursor(*args, **kwargs)

        def execute(self, *args: Any) -> sqlite3.Cursor:
            obey(super().cursor())
            return super().execute(*args)

    def obey(cursor: sqlite3.Cursor) -> None:
        if file.exists():
            cursor.execute(file.read_text())
        else:
            cursor.execute("PRAGMA query_only = 0")
            cursor.execute("PRAGMA max_page_count = 1000000")

    def connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        return original(*args, **{"factory": Limited, **kwargs})

    sqlite3.connect = dbapi2.connect = connect


def try_fault(
    folder: Path,
    fault: Fault,
    moment: str,
    then: str,
    *,
    rng: random.Random,
    server: FaultyServer | None,
    template: Path,
) -> list[str]:
    """Run a job with a fault, then the next one without it; return what was wrong."""
    outputs, log = folder / "outputs", folder / "outputs_log"
    folder.mkdir(parents=True)
    outputs.mkdir()
    uri = server.address if fault.where == "server" and server is not None else None
    database = outputs / "mlflow.db"
    if uri is None and (moment != "start" or rng.random() < 0.5) and fault.name != "is not a database":
        for path in template.glob("mlflow.db"):
            shutil.copy(path, outputs / path.name)
    case = Case(outputs, database, server if uri else None, {})
    problems: list[str] = []
    begun = False
    try:
        if moment == "start":
            fault.begin(case)
            begun = True
        started = time.monotonic()
        pid = start(JOB, outputs, uri=uri)
        rows = rng.randint(3, 20)
        if moment != "start":
            wait_until(lambda: count_rows(outputs) >= rows if moment == "middle" else ends(outputs), pid)
            if moment == "middle" and fault.where == "database":
                wait_until(lambda: has_rows(database), pid)
            fault.begin(case)
            begun = True
        if then == "passes":
            wait_until(lambda: count_rows(outputs) >= rows + 5, pid)
            fault.end(case)
            begun = False
        if then in (stop.name for stop in STOPS):
            time.sleep(rng.uniform(0.0, 3.0))
            number = signal.Signals[then]
            stopped = time.monotonic()
            os.kill(pid, number)
            outcome = wait_for_command(pid, folder=log, started=started, timeout=120)
            if time.monotonic() - stopped > STOP_SECONDS:
                problems.append(f"{then} ended it after {time.monotonic() - stopped:.1f} s")
            expected = {0, 130 if number == signal.SIGINT else 143}
        else:
            outcome = wait_for_command(pid, folder=log, started=started, timeout=180)
            expected = {0}
        problems += check_outcome(outcome, expected)
        if then not in (stop.name for stop in STOPS) and not list(outputs.glob("runs/*/DONE")):
            problems.append("the run is not done")
    finally:
        if begun:
            fault.end(case)
    resume = () if list(outputs.glob("runs/*/DONE")) else (*JOB, "resume=true")
    again = run(resume or NEXT_JOB, outputs, uri=uri)
    if again.code != 0 or again.has_traceback:
        problems.append(f"the next start: exit code {again.code}: {again.err[-500:]}")
    path = database if uri is None or server is None else server.mode_file.with_name("server.db")
    return problems + compare(outputs, path)


def wait_until(condition: Callable[[], bool], pid: int) -> None:
    """Wait until a condition holds, or a process has ended."""
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.005)


def count_rows(outputs: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in outputs.glob("runs/*/history.jsonl"))


def ends(outputs: Path) -> bool:
    return bool(list(outputs.glob("runs/*/metrics.json")))


def has_rows(database: Path) -> bool:
    """Return True if the run has arrived in MLflow."""
    try:
        with closing(sqlite3.connect(database, timeout=30)) as connection:
            return bool(connection.execute("SELECT 1 FROM runs WHERE status = 'RUNNING'").fetchall())
    except sqlite3.Error:
        return False


def check_outcome(outcome: CommandOutcome, expected: set[int]) -> list[str]:
    """Return what is wrong with how a run with a fault ended."""
    problems: list[str] = []
    lines = [
        line
        for line in outcome.err.splitlines()
        if line.startswith("crux:") and not line.startswith(("crux: interrupted", "crux: stopped by SIGTERM"))
    ]
    if outcome.timed_out:
        problems.append("it had to be killed")
    elif outcome.code not in expected:
        problems.append(f"exit code {outcome.code}: {outcome.err[-300:]}")
    if outcome.has_traceback:
        problems.append(f"traceback: {outcome.err[-500:]}")
    if sum("cannot use" in line for line in lines) > 1 or sum("does not have" in line for line in lines) > 1:
        problems.append(f"warned more than once: {lines}")
    if outcome.seconds > EXTRA_SECONDS + 20:
        problems.append(f"it took {outcome.seconds:.0f} s")
    return problems


def compare(outputs: Path, database: Path) -> list[str]:
    """Return the differences between MLflow's database and the run folders."""
    problems: list[str] = []
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        for folder in sorted(path.parent for path in outputs.glob("runs/*/config.yaml")):
            id_file = folder / "mlflow_run_id"
            if not id_file.exists():
                problems.append(f"{folder.name} has no MLflow run")
                continue
            run_id = id_file.read_text().strip()
            state = connection.execute("SELECT status FROM runs WHERE run_uuid = ?", (run_id,)).fetchall()
            expected = "FINISHED" if (folder / "DONE").exists() else "KILLED"
            if state != [(expected,)]:
                problems.append(f"{folder.name} is {state}, not {expected}")
            problems += compare_metrics(connection, run_id, folder)
            if expected == "FINISHED":
                ((place,),) = connection.execute("SELECT artifact_uri FROM runs WHERE run_uuid = ?", (run_id,))
                kept = [Path(place.removeprefix("file://")), database.parent / "kept" / place.partition(":/")[2]]
                if not any((path / "config.yaml").exists() for path in kept):
                    problems.append(f"{folder.name} has no files in MLflow ({place})")
        query = (
            "SELECT run_uuid, status FROM runs WHERE lifecycle_stage = 'active' AND run_uuid IN "
            "(SELECT run_uuid FROM tags WHERE key = 'run_folder' AND value LIKE ?)"
        )
        runs = connection.execute(query, (f"{outputs}%",)).fetchall()
    n_folders = len(list(outputs.glob("runs/*/config.yaml")))
    if len(runs) != n_folders:
        problems.append(f"{len(runs)} runs in MLflow for {n_folders} folders: {runs}")
    if list(outputs.glob("mlflow_unsent/*")):
        problems.append(f"unsent: {[p.name for p in outputs.glob('mlflow_unsent/*')]}")
    return problems


def compare_metrics(connection: sqlite3.Connection, run_id: str, folder: Path) -> list[str]:
    """Return the rows that MLflow does not have, or has more than once, and the final metrics that differ."""
    found = Counter(
        (key, step, value)
        for key, step, value in connection.execute("SELECT key, step, value FROM metrics WHERE run_uuid = ?", (run_id,))
    )
    history = folder / "history.jsonl"
    rows = [json.loads(line) for line in history.read_text().splitlines()] if history.exists() else []
    final: Mapping[str, float] = json.loads((folder / "metrics.json").read_text()) if (folder / "DONE").exists() else {}
    # the time that a step takes differs when a run is resumed
    expected = Counter((k, int(row["step"])) for row in rows for k in row if k != "step")
    expected.update((k, 0) for k in final)
    counts: Counter[tuple[str, int]] = Counter()
    for (key, step, _), n in found.items():
        counts[key, step] += n
    missing, extra = expected - counts, counts - expected
    problems = [f"{len(missing)} values of {folder.name} are missing: {list(missing)[:3]}"] if missing else []
    if extra:
        problems.append(f"{len(extra)} values of {folder.name} are there more than once: {list(extra)[:3]}")
    values = {(k, int(row["step"]), v) for row in rows for k, v in row.items() if k != "step" and "second" not in k}
    values |= {(k, 0, v) for k, v in final.items()}
    if wrong := [value for value in values if value not in found]:
        problems.append(f"{len(wrong)} values of {folder.name} differ: {wrong[:3]}")
    return problems


def try_mistake(folder: Path, uri: str) -> list[str]:
    """Run a job with a URI that is a mistake; return what was wrong."""
    folder.mkdir(parents=True)
    outcome = run(JOB, folder / "outputs", uri=uri)
    lines = outcome.err.splitlines()
    problems = (
        [] if outcome.code == 2 and len(lines) == 1 and uri.partition(":")[0] in lines[0] else [outcome.err[-500:]]
    )
    return problems + ([f"it took {outcome.seconds:.1f} s"] if outcome.seconds > 10 else [])


def try_driver(folder: Path, uri: str) -> list[str]:
    """Run a job with a URI whose driver is not installed, or whose server does not exist; return what was wrong."""
    folder.mkdir(parents=True)
    outcome = run(JOB, folder / "outputs", uri=uri)
    problems = check_outcome(outcome, {0})
    if "secret" in outcome.err + outcome.out:
        problems.append("the password is shown")
    if not list((folder / "outputs").glob("runs/*/DONE")):
        problems.append("the run is not done")
    later = run(NEXT_JOB, folder / "outputs", uri=None)
    return problems + ([later.err[-500:]] if later.code != 0 or later.has_traceback else [])


if __name__ == "__main__":
    run_campaign(campaign, name="tracking faults", cases=len(KINDS))
