"""The command line, killed with SIGKILL during training and resumed, and attempts to resume that are rejected."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from crux.config.errors import UserError
from crux.sae.job import run
from crux.training.checkpoints import checkpoint_step
from tests.support.sae_jobs import ROOT, compose_sae_job

MAX_STEPS, CHECKPOINT_EVERY = 60, 12
SHORT_JOB = [
    "model.context=32", "trainer.batch=2", f"trainer.max_steps={MAX_STEPS}", f"trainer.checkpoint_every={CHECKPOINT_EVERY}",
    "trainer.log_every=1", "trainer.val_every=0", "trainer.progress=false", "sae.n_latents=32", "data.max_tokens=20000",
    "evaluation.tokens=256", "evaluation.val_tokens=64", "evaluation.latents=0",
]  # fmt: skip
JOBS = {"e2e_ds": ["loss=e2e_ds", "tracking=mlflow"], "local": ["loss=local", "tracking=none"]}


class Outcome(NamedTuple):
    """A run that was killed and resumed, and the same run without interruption."""

    whole: Path
    """Run folder of the uninterrupted run."""
    broken: Path
    """Folder of the run that was killed and resumed."""
    rows_at_kill: int
    """The last step in the history of the killed run."""
    checkpoint_at_kill: int
    """The step of the last checkpoint of the killed run."""


def start_command(*overrides: str, log: Path) -> subprocess.Popen[bytes]:
    """Start `python src/main.py …` on one thread, with its output in a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, str(ROOT / "src" / "main.py"), *SHORT_JOB, *overrides]
    with log.open("wb") as f:
        return subprocess.Popen(command, stdout=f, stderr=subprocess.STDOUT, env=environment)


def find_only_run(outputs: Path) -> Path:
    (folder,) = (outputs / "runs").iterdir()
    return folder


def kill_mid_training(process: subprocess.Popen[bytes], outputs: Path, log: Path) -> None:
    """Send SIGKILL when the history is three to ten steps beyond a checkpoint."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, f"it ended before it could be killed: {log.read_text()}"
        for history in (outputs / "runs").glob("*/history.jsonl"):
            step = history.read_bytes().count(b"\n")
            if (
                step > CHECKPOINT_EVERY
                and 3 <= step % CHECKPOINT_EVERY <= 10
                and (history.parent / "checkpoints" / "last.ckpt").exists()
            ):
                process.send_signal(signal.SIGKILL)
                assert process.wait(60) == -signal.SIGKILL
                return
        time.sleep(0.005)
    process.kill()
    raise AssertionError(f"it never came to training: {log.read_text()}")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, cache: Path, _one_thread: None) -> dict[str, Outcome]:
    """Return the outcomes of two jobs that were killed and resumed, and of the same jobs without interruption.

    e2e_ds is resumed by the command, local in this process, since a command spends seconds on loading libraries.
    """
    place = tmp_path_factory.mktemp("resume")

    def kill_and_resume(name: str) -> tuple[int, int]:
        outputs, log = place / name, place / f"{name}.log"
        kill_mid_training(start_command(*JOBS[name], f"cache={cache}", f"output_dir={outputs}", log=log), outputs, log)
        folder = find_only_run(outputs)
        assert not (folder / "DONE").exists()
        rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        return rows[-1]["step"], checkpoint_step(folder / "checkpoints" / "last.ckpt")

    def run_here(name: str, outputs: Path, *more: str) -> None:
        run(compose_sae_job(*SHORT_JOB, JOBS[name][0], "tracking=none", f"output_dir={outputs}", *more), folder=None)

    with ThreadPoolExecutor(2) as pool:
        at_kill = dict(zip(JOBS, pool.map(kill_and_resume, JOBS), strict=True))
    log = place / "again.log"
    resumed = start_command(*JOBS["e2e_ds"], f"cache={cache}", f"output_dir={place / 'e2e_ds'}", "resume=true", log=log)
    run_here("local", place / "local", "resume=true")
    for name in JOBS:
        run_here(name, place / f"{name}_whole")
    assert resumed.wait(240) == 0, log.read_text()
    return {
        name: Outcome(find_only_run(place / f"{name}_whole"), find_only_run(place / name), *at_kill[name])
        for name in JOBS
    }


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_a_killed_run_ends_with_the_same_weights_bit_for_bit(job: str, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[job]
    assert CHECKPOINT_EVERY <= outcome.checkpoint_at_kill < outcome.rows_at_kill < MAX_STEPS
    whole, broken = (load_file(f / "sae" / "sae_weights.safetensors") for f in (outcome.whole, outcome.broken))
    assert whole.keys() == broken.keys() >= {"W_enc", "W_dec", "b_enc", "b_dec"}
    for name, weight in whole.items():
        assert torch.equal(weight, broken[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_history_and_metrics_of_a_killed_run_are_those_of_an_uninterrupted_run(
    job: str, outcomes: dict[str, Outcome]
) -> None:
    outcome = outcomes[job]
    whole, broken = (
        [json.loads(line) for line in (f / "history.jsonl").read_text().splitlines()]
        for f in (outcome.whole, outcome.broken)
    )
    assert [row["step"] for row in broken] == list(range(1, MAX_STEPS + 1))
    assert broken == whole
    whole, broken = (json.loads((f / "metrics.json").read_text()) for f in (outcome.whole, outcome.broken))
    for metrics in (whole, broken):
        assert metrics.pop("final/tokens_per_second") > 0
    assert broken == whole
    assert (outcome.broken / "DONE").exists()


@pytest.mark.slow
def test_mlflow_has_one_finished_run_for_a_killed_and_resumed_one(outcomes: dict[str, Outcome]) -> None:
    folder = outcomes["e2e_ds"].broken
    metrics = json.loads((folder / "metrics.json").read_text())
    with closing(sqlite3.connect(folder.parents[1] / "mlflow.db")) as database:
        ((run_id, status),) = database.execute("select run_uuid, status from runs").fetchall()
        rows = database.execute("select step from metrics where key = 'train/loss'").fetchall()
        final = database.execute("select value from metrics where key = 'final/ce_increase'").fetchall()
    assert status == "FINISHED"
    assert run_id == (folder / "mlflow_run_id").read_text().strip()
    assert {step for (step,) in rows} == set(range(1, MAX_STEPS + 1))
    assert final == [(metrics["final/ce_increase"],)]
    assert not (outcomes["local"].broken.parents[1] / "mlflow.db").exists()


def read_error(*overrides: str, tmp_path: Path) -> str:
    """Return the single line of the error message."""
    log = tmp_path / "log"
    assert start_command(*overrides, log=log).wait(120) == 2, log.read_text()
    text = log.read_text()
    assert re.fullmatch(r"crux: [^\n]+\n", text), text
    return text


def test_resuming_without_an_unfinished_run_is_an_error(tmp_path: Path) -> None:
    text = read_error("resume=true", "tracking=none", f"output_dir={tmp_path / 'outputs'}", tmp_path=tmp_path)
    assert "resume=true: no unfinished run" in text
    assert not list((tmp_path / "outputs").glob("*/*"))


@pytest.mark.slow
def test_another_configuration_is_rejected_with_the_keys_that_differ(
    outcomes: dict[str, Outcome], tmp_path: Path
) -> None:
    folder = outcomes["local"].broken
    done = (folder / "DONE").read_text()
    (folder / "DONE").unlink()
    try:
        text = read_error(*JOBS["local"], f"resume_from={folder}", "sparsity=7", "seed=4", tmp_path=tmp_path)
    finally:
        (folder / "DONE").write_text(done)
    assert re.search(r"seed: 0 / 4", text)
    assert re.search(r"sparsity: [\d.]+ / 7\.0", text)
    assert "optimizer.lr" not in text


@pytest.mark.slow
def test_a_finished_run_is_rejected(outcomes: dict[str, Outcome]) -> None:
    folder = outcomes["local"].broken
    with pytest.raises(UserError, match="is finished"):
        run(compose_sae_job(*SHORT_JOB, *JOBS["local"], f"resume_from={folder}"), folder=None)
    with pytest.raises(UserError, match="no unfinished run"):
        run(compose_sae_job(*SHORT_JOB, *JOBS["local"], "resume=true", f"output_dir={folder.parents[1]}"), folder=None)


@pytest.mark.slow
def test_a_corrupt_checkpoint_gives_one_line(outcomes: dict[str, Outcome]) -> None:
    """The checkpoint and the run stay unchanged."""
    folder = outcomes["local"].broken
    last = folder / "checkpoints" / "last.ckpt"
    done, whole = (folder / "DONE").read_text(), last.read_bytes()
    history = (folder / "history.jsonl").read_bytes()
    (folder / "DONE").unlink()
    last.write_bytes(whole[: len(whole) // 2])
    try:
        with pytest.raises(UserError, match="is not a complete checkpoint") as caught:  # the command line's exit code 2
            run(compose_sae_job(*SHORT_JOB, *JOBS["local"], f"resume_from={folder}"), folder=None)
        assert last.stat().st_size == len(whole) // 2
        assert (folder / "history.jsonl").read_bytes() == history
    finally:
        last.write_bytes(whole)
        (folder / "DONE").write_text(done)
    assert str(last) in str(caught.value)
    assert "\n" not in str(caught.value)
