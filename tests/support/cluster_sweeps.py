"""Sweeps as the cluster tests start and read them."""

import json
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

STEPS = 200
JOB = [
    "debug=limit", "trainer.progress=false", f"trainer.max_steps={STEPS}", "trainer.val_every=0", "trainer.checkpoint_every=5",
    "evaluation.tokens=1024", "evaluation.latents=0", "layer=4",
]  # fmt: skip
GRID = ["-m", "loss=local,e2e", "seed=0,1", "sweep_name=grid"]


def wait_for(what: Callable[[], object], process: subprocess.Popen[str], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def folders(outputs: Path, sweep: str) -> list[Path]:
    return sorted(path.parent for path in (outputs / "sweeps" / sweep).glob("*/output.log"))


def check_whole(folder: Path, steps: int) -> None:
    """Finished, and every step is in the history once."""
    assert (folder / "DONE").exists()
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))


def judged(folder: Path) -> dict[str, float]:
    return {k: v for k, v in json.loads((folder / "metrics.json").read_text()).items() if "per_second" not in k}


def logged(outputs: Path, folder: Path) -> Counter[int]:
    """How often the job told MLflow of each step: twice only for those that it did again after its last checkpoint."""
    run = (folder / "mlflow_run_id").read_text().strip()
    connection = sqlite3.connect(outputs / "mlflow.db")
    query = "SELECT step FROM metrics WHERE run_uuid = ? AND key = 'train/loss' ORDER BY step"
    found = Counter(step for (step,) in connection.execute(query, (run,)))
    connection.close()
    return found


def seconds_a_step(outputs: Path, folder: Path) -> float:
    """From what the job told MLflow, which it does at every step."""
    run = (folder / "mlflow_run_id").read_text().strip()
    connection = sqlite3.connect(outputs / "mlflow.db")
    query = "SELECT step, timestamp FROM metrics WHERE run_uuid = ? AND key = 'train/loss' ORDER BY step"
    rows = connection.execute(query, (run,)).fetchall()
    connection.close()
    (first, began), (last, ended) = rows[0], rows[-1]
    return (ended - began) / 1000 / (last - first)


def states(outputs: Path) -> Counter[str]:
    connection = sqlite3.connect(outputs / "mlflow.db")
    found = Counter(status for (status,) in connection.execute("SELECT status FROM runs"))
    connection.close()
    return found
