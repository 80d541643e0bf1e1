"""Toy experiments from the command line: the files they write, how they resume, and what they reject."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crux.runs.run_folder import RunFolder

SHORT = ("experiment=toy/intro_polygon", "trainer.max_steps=30", "trainer.batch=32", "trainer.log_every=10",
         "trainer.checkpoint_every=10", "trainer.progress=false", "toy.held_out=1024", "toy.seeds=2")  # fmt: skip


def find_run(outputs: Path) -> RunFolder:
    (folder,) = (outputs / "runs").iterdir()
    return RunFolder(folder)


def test_a_run_writes_its_files_and_is_in_mlflow(run_crux: Callable[..., int], tmp_path: Path) -> None:
    assert run_crux(*SHORT, f"output_dir={tmp_path}") == 0
    run = find_run(tmp_path)
    assert run.done
    assert [row["step"] for row in run.read_history()] == [10, 20, 30]
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert {"final/checks", "final/checks_failed"} <= metrics.keys()
    report = (run.path / "report.md").read_text()
    assert report.startswith("# toy intro_polygon")
    assert "![polygons](figures/polygons.png)" in report.splitlines()
    tensors = load_file(run.programs / "model" / "model.safetensors")
    assert tensors["W"].shape == (6, 1, 2, 5)
    assert not (run.programs / "model" / "checkpoints" / "last.ckpt").exists()

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (logged,) = client.search_runs(["1"])
    assert logged.info.status == "FINISHED"
    assert logged.data.params["experiment"] == "toy/intro_polygon"
    assert logged.data.params["instances"] == "6"
    assert logged.data.metrics["final/checks"] == metrics["final/checks"]
    assert "train/loss" in logged.data.metrics


@pytest.mark.slow
def test_a_resumed_run_has_the_same_results(run_crux: Callable[..., int], command: list[str], tmp_path: Path) -> None:
    longer = [*SHORT, "trainer.max_steps=1000", "trainer.checkpoint_every=200", "tracking=none"]
    assert run_crux(*longer, f"output_dir={tmp_path / 'whole'}") == 0
    killed = subprocess.Popen([*command, *longer, f"output_dir={tmp_path / 'killed'}"])
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "killed").glob("runs/*/programs/model/checkpoints/last.ckpt")):
            assert time.monotonic() < deadline
            assert killed.poll() is None
            time.sleep(0.05)
    finally:
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
    assert not find_run(tmp_path / "killed").done
    assert run_crux(*longer, f"output_dir={tmp_path / 'killed'}", "resume=true") == 0
    whole, resumed = find_run(tmp_path / "whole"), find_run(tmp_path / "killed")
    assert resumed.done
    assert resumed.read_history() == whole.read_history()
    a, b = (load_file(run.programs / "model" / "model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("layer=3", "layer: this job has no such key; the main job has it; allowed keys: "),
        ("sae=topk", "sae: has no meaning for this experiment"),
        ("optimizer.clip=1", "optimizer.clip: this job has no such key"),
        ("toy.densities=[0.0]", "toy.densities=[0.0]: must be numbers that are more than 0, up to 1"),
        ("toy.n_sets=2", "5 features cannot form 2 equal sets"),
        ("toy.kind=relu", "toy.kind=relu: allowed are linear, relu_output, relu_hidden, absolute_value"),
        ("toy.experiment=basic", "choose an experiment with experiment=toy/…"),
        (
            "toy.ratios=[1.0]",
            "toy.ratios: this job has no such key",
        ),
        ("toy.densities=0.1", "toy.densities: must be a list, such as [a,b]"),
        ("toy.n_feature=3", "did you mean toy.n_features?"),
        ("toy.held_out=1500", "must be a multiple of 1024, or less than 1024"),
    ],
)
def test_unsuitable_keys_are_rejected_in_one_line(given: str, says: str, error_message: Callable[..., str]) -> None:
    assert says in error_message(*SHORT, given)
