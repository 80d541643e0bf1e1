"""Sweeps for the tests on clusters: what they run, and what they leave in run folders and in MLflow."""

import json
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

STEPS = 200
"""Steps of each job: enough that a test can kill it during training."""
JOB = [
    "debug=limit", "trainer.progress=false", f"trainer.max_steps={STEPS}", "trainer.val_every=0", "trainer.checkpoint_every=5",
    "evaluation.tokens=1024", "evaluation.latents=0", "layer=4",
]  # fmt: skip
GRID = ["-m", "loss=local,e2e", "seed=0,1", "sweep_name=grid"]


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], *, seconds: float) -> None:
    """Wait until the condition is true, while the process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def find_job_folders(outputs: Path, sweep: str) -> list[Path]:
    """Return the folders of the jobs that have started."""
    return sorted(path.parent for path in (outputs / "sweeps" / sweep).glob("*/output.log"))


def check_complete(folder: Path, steps: int) -> None:
    """Check that a run is finished and that its history has each step once."""
    assert (folder / "DONE").exists()
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))


def read_metrics(folder: Path) -> dict[str, float]:
    """Return the metrics of a run that do not depend on the speed of the machine."""
    return {k: v for k, v in json.loads((folder / "metrics.json").read_text()).items() if "per_second" not in k}


def count_logged_steps(outputs: Path, folder: Path) -> Counter[int]:
    """Count how often each step was logged to MLflow; steps repeated after a checkpoint are logged twice."""
    run = (folder / "mlflow_run_id").read_text().strip()
    connection = sqlite3.connect(outputs / "mlflow.db")
    query = "SELECT step FROM metrics WHERE run_uuid = ? AND key = 'train/loss' ORDER BY step"
    steps = Counter(step for (step,) in connection.execute(query, (run,)))
    connection.close()
    return steps


def seconds_per_step(outputs: Path, folder: Path) -> float:
    """Return the mean time of a step, from the times at which steps were logged to MLflow."""
    run = (folder / "mlflow_run_id").read_text().strip()
    connection = sqlite3.connect(outputs / "mlflow.db")
    query = "SELECT step, timestamp FROM metrics WHERE run_uuid = ? AND key = 'train/loss' ORDER BY step"
    rows = connection.execute(query, (run,)).fetchall()
    connection.close()
    (first_step, start), (last_step, end) = rows[0], rows[-1]  # times in milliseconds
    return (end - start) / 1000 / (last_step - first_step)


def count_states(outputs: Path) -> Counter[str]:
    """Count the MLflow runs in each state."""
    connection = sqlite3.connect(outputs / "mlflow.db")
    statuses = Counter(status for (status,) in connection.execute("SELECT status FROM runs"))
    connection.close()
    return statuses
