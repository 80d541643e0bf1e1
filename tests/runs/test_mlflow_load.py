"""MLflow under load: repeatedly, eight first starts at once lose nothing; a sweep reports to a server."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from crux.runs.mlflow import default_uri

ROOT = Path(__file__).resolve().parents[2]
N_JOBS, N_ROUNDS, N_STEPS, N_METRICS = 8, 5, 20, 20


@pytest.mark.slow
def test_eight_first_starts_at_once_lose_nothing(tmp_path: Path) -> None:
    """In each round, eight processes start without a database; every run, parameter and metric arrives."""
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.mlflow_runs", str(i), json.dumps({"n_steps": N_STEPS, "n_metrics": N_METRICS})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for i in range(N_JOBS)
    ]  # fmt: skip
    try:
        for job in jobs:
            assert job.stdout is not None
            assert job.stdout.readline() == "loaded\n"
        for n in range(N_ROUNDS):
            outputs = tmp_path / str(n)
            for job in jobs:
                assert job.stdin is not None
                job.stdin.write(f"{outputs}\n")
                job.stdin.flush()
            for job in jobs:
                assert job.stdout is not None
                assert job.stdout.readline() == "done\n"
            client = MlflowClient(default_uri(outputs))
            experiment = client.get_experiment_by_name("crux")
            assert experiment is not None
            runs = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'")
            assert sorted(r.data.params["job"] for r in runs) == [str(i) for i in range(N_JOBS)]
            for run in runs:
                assert len(run.data.metrics) == N_METRICS
                curve = client.get_metric_history(run.info.run_id, "train/7")
                assert sorted(m.value for m in curve) == list(range(N_STEPS))
    finally:
        for job in jobs:
            job.kill()
            job.communicate()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Start an MLflow server on this machine, and return its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path / "kept"),
    ]  # fmt: skip
    log = (tmp_path / "server.log").open("w")
    process = subprocess.Popen(line, stdout=log, stderr=log, env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"})
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)
        log.close()


@pytest.mark.slow
def test_a_sweep_against_a_server(
    server: str, run_crux: Callable[..., int], short_job: tuple[str, ...], tmp_path: Path
) -> None:
    line = ("-m", "loss=local,e2e", "seed=0,1", "sweep_name=served", f"tracking.uri={server}", f"output_dir={tmp_path}")
    assert run_crux(*short_job, *line) == 0
    assert not (tmp_path / "mlflow.db").exists()
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("crux")
    assert experiment is not None
    parent = (tmp_path / "sweeps" / "served" / "mlflow_run_id").read_text().strip()
    assert client.get_run(parent).info.status == "FINISHED"
    children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert len(children) == 4
    assert {(c.info.status, c.data.tags["sweep"]) for c in children} == {("FINISHED", "served")}
    assert all(c.data.metrics["final/l0"] > 0 for c in children)
    summary = {a.path for place in ("", "figures") for a in client.list_artifacts(parent, place)}
    assert {"report.md", "runs.csv", "figures/pareto_l0.png"} <= summary
    assert {"config.yaml", "metrics.json"} <= {a.path for a in client.list_artifacts(children[0].info.run_id)}
