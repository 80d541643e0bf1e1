"""trainer=ddp on the command line: interrupted and failing processes, and options that are rejected."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crux.config.bounds import check_bounds
from crux.config.errors import UserError
from crux.runs.database import prepare_database
from crux.sae.job import run
from crux.sae.options import SaeJob
from crux.training.checkpoints import checkpoint_step
from tests.support.sae_jobs import ROOT, compose_sae_job

STEPS, CHECKPOINT_EVERY = 40, 10
SHORT_JOB = [
    "loss=e2e_ds", "model.context=32", "trainer.batch=2", f"trainer.max_steps={STEPS}", f"trainer.checkpoint_every={CHECKPOINT_EVERY}",
    "trainer.log_every=1", "trainer.val_every=20", "trainer.accelerator=cpu", "sae.n_latents=32", "data.max_tokens=20000",
    "evaluation.tokens=256", "evaluation.val_tokens=64", "evaluation.latents=0",
]  # fmt: skip
TWO_PROCESSES = ["trainer=ddp", "trainer.devices=2"]
ENDLESS = ["trainer.max_steps=1000000", "trainer.val_every=0", "trainer.progress=false"]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database with MLflow's tables, which takes longer to create than a short job runs."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    prepare_database(path)
    return path


@pytest.fixture
def outputs(tmp_path: Path, empty_database: Path) -> Path:
    """Return an outputs folder with an empty database."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path


def start_command(*overrides: str, outputs: Path) -> subprocess.Popen[str]:
    """Start `python src/main.py …` with a short job."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = {word.partition("=")[0]: word for word in (*SHORT_JOB, *overrides, f"output_dir={outputs}")}
    command = [sys.executable, str(ROOT / "src" / "main.py"), *words.values()]
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    finally:
        signal.signal(signal.SIGINT, inherited)


def find_child_processes(process: subprocess.Popen[str]) -> list[int]:
    """Return the processes that a command has started for further devices."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def read_rows(outputs: Path) -> list[dict[str, float]]:
    """Return the rows of the history of the only run."""
    (path,) = (outputs / "runs").glob("*/history.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def find_only_run(outputs: Path) -> Path:
    (folder,) = (outputs / "runs").iterdir()
    return folder


def read_states(outputs: Path) -> list[str]:
    """Return the states of all runs in MLflow."""
    with closing(sqlite3.connect(outputs / "mlflow.db")) as database:
        return [status for (status,) in database.execute("select status from runs")]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], *, seconds: float = 500) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def has_steps(outputs: Path, n: int) -> Callable[[], bool]:
    """Return a function that says whether the history has n rows."""
    return lambda: bool(list((outputs / "runs").glob("*/history.jsonl"))) and len(read_rows(outputs)) >= n


@pytest.fixture
def running_job(outputs: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a run with two processes and return it during training, after a checkpoint."""
    process = start_command(*TWO_PROCESSES, *ENDLESS, outputs=outputs)
    try:
        wait_until(has_steps(outputs, CHECKPOINT_EVERY + 5), process)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[Path, str, str]:
    """Return the outputs of a finished run with two processes, and what it printed."""
    outputs = tmp_path_factory.mktemp("whole")
    process = start_command(*TWO_PROCESSES, outputs=outputs)
    out, err = process.communicate(timeout=550)
    assert process.returncode == 0, err
    return outputs, out, err


@pytest.mark.slow
def test_two_processes_are_one_run_with_the_numbers_of_one_process(
    finished_run: tuple[Path, str, str], tmp_path: Path
) -> None:
    outputs, out, err = finished_run
    run(compose_sae_job(*SHORT_JOB, "tracking=none", "trainer.progress=false", f"output_dir={tmp_path}"), folder=None)
    assert read_states(outputs) == ["FINISHED"]
    folder, one_process = find_only_run(outputs), find_only_run(tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [*(p.name for p in one_process.iterdir()), "mlflow_run_id"]
    )
    assert out.count("on held-out text") == out.count("run folder") == 1
    assert err.count(f"{STEPS}/{STEPS}") == 1, "one progress bar"
    lines = [line for line in err.splitlines() if line.strip() and f"{STEPS}/{STEPS}" not in line]
    assert all(" ... " in line for line in lines), "besides, at most lines that say what takes long"
    for a, b in zip(read_rows(tmp_path), read_rows(outputs), strict=True):
        assert a.keys() == b.keys()
        assert all(b[name] == pytest.approx(value, rel=1e-3, abs=1e-4) for name, value in a.items())
    a, b = (json.loads((f / "metrics.json").read_text()) for f in (one_process, folder))
    assert a.keys() == b.keys()
    for name in ("final/ce_increase", "final/l0", "final/explained_variance"):
        assert b[name] == pytest.approx(a[name], rel=1e-2, abs=1e-3)
    with closing(sqlite3.connect(outputs / "mlflow.db")) as database:
        logged = database.execute("select step from metrics where key = 'train/loss'").fetchall()
    assert sorted(step for (step,) in logged) == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_killed_and_resumed_run_ends_like_an_uninterrupted_one(
    finished_run: tuple[Path, str, str], tmp_path: Path
) -> None:
    """After SIGKILL of the first process the other one ends too. The resumed run equals an uninterrupted one bit for bit."""
    process = start_command(*TWO_PROCESSES, outputs=tmp_path)
    try:
        wait_until(has_steps(tmp_path, CHECKPOINT_EVERY + 3), process)
        (other,) = find_child_processes(process)
        process.kill()
        process.communicate()
        deadline = time.monotonic() + 20
        while is_alive(other):
            assert time.monotonic() < deadline, "a process was left behind"
            time.sleep(0.1)
    finally:
        process.kill()
        process.communicate()
    folder = find_only_run(tmp_path)
    assert not (folder / "DONE").exists()
    last_checkpoint = checkpoint_step(folder / "checkpoints" / "last.ckpt")
    assert CHECKPOINT_EVERY <= last_checkpoint < STEPS
    resumed = start_command(*TWO_PROCESSES, "resume=true", outputs=tmp_path)
    _, err = resumed.communicate(timeout=550)
    assert resumed.returncode == 0, err
    assert read_states(tmp_path) == ["FINISHED"]
    assert read_rows(tmp_path) == read_rows(finished_run[0])
    a, b = (
        load_file(find_only_run(place) / "sae" / "sae_weights.safetensors") for place in (finished_run[0], tmp_path)
    )
    assert a.keys() == b.keys()
    assert all(torch.equal(weight, b[name]) for name, weight in a.items())


@pytest.mark.slow
def test_a_process_that_fails_ends_the_run(running_job: subprocess.Popen[str], outputs: Path) -> None:
    (other,) = find_child_processes(running_job)
    os.kill(other, signal.SIGKILL)
    _, err = running_job.communicate(timeout=60)
    assert running_job.returncode == 2
    assert re.fullmatch(r"crux: process 1 of processes 0 to 1 ended with signal 9 \(SIGKILL\)[^\n]*\n", err), err
    assert read_states(outputs) == ["FAILED"]
    assert checkpoint_step(find_only_run(outputs) / "checkpoints" / "last.ckpt") >= CHECKPOINT_EVERY


@pytest.mark.slow
def test_a_process_that_fails_before_it_trains_ends_the_run(outputs: Path) -> None:
    process = start_command(*TWO_PROCESSES, *ENDLESS, outputs=outputs)
    try:
        wait_until(lambda: bool(find_child_processes(process)), process)
        os.kill(find_child_processes(process)[0], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2
    assert err.count("\n") == 1
    assert "process 1" in err
    assert read_states(outputs) == ["FAILED"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_is_killed_in_mlflow_and_leaves_no_process(
    number: signal.Signals, code: int, running_job: subprocess.Popen[str], outputs: Path
) -> None:
    (other,) = find_child_processes(running_job)
    os.kill(other, number)  # a terminal and a cluster send the signal to every process
    running_job.send_signal(number)
    _, err = running_job.communicate(timeout=60)
    assert running_job.returncode == code, err
    assert err.count("\n") <= 1, err
    assert not is_alive(other)
    assert read_states(outputs) == ["KILLED"]


REJECTED = {
    "trainer.devices=2": "give that too",
    "trainer=ddp trainer.devices=0": "1 or more",
    "trainer=ddp trainer.devices=3": "must be a multiple of 3",
    "trainer=ddp trainer.devices=2 loss.max_norm=100": "use it with one device",
    "trainer=ddp trainer.accelerator=cpu": "give the number of processes",
}


@pytest.mark.parametrize("given", REJECTED)
def test_invalid_options_give_one_line(given: str) -> None:
    with pytest.raises(UserError, match=REJECTED[given]) as caught:
        check_command(*given.split())
    assert "\n" not in str(caught.value)


def check_command(*overrides: str) -> None:
    """Compose a command line and check it as the command line does."""
    config = compose_sae_job(*overrides)
    check_bounds(config, "")
    config.check({override.partition("=")[0] for override in overrides})


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "SLURM_STEP_NUM_TASKS"])
def test_processes_started_by_other_launchers_are_rejected(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "2")
    with pytest.raises(UserError, match="starts its processes itself"):
        check_command(*TWO_PROCESSES)
    monkeypatch.setenv(variable, "1")
    if variable.startswith("SLURM"):
        check_command(*TWO_PROCESSES)


def test_more_devices_than_there_are_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from crux.sae.devices import count_devices

    def n_devices(config: SaeJob) -> int:
        return count_devices(config.trainer, config.loss)

    assert n_devices(compose_sae_job()) == 1
    assert n_devices(compose_sae_job(*TWO_PROCESSES, "trainer.accelerator=cpu")) == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert n_devices(compose_sae_job("trainer=ddp")) == 4
    with pytest.raises(UserError, match=r"trainer.devices=8: torch sees 4 GPUs here"):
        n_devices(compose_sae_job("trainer=ddp", "trainer.devices=8", "trainer.batch=8"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(UserError, match="must be a multiple of 3"):
        n_devices(compose_sae_job("trainer=ddp"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch sees no GPU here"):
        n_devices(compose_sae_job("trainer=ddp"))


def test_a_sweep_rejects_several_processes_once(
    run_crux: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_crux("-m", *TWO_PROCESSES, "seed=0,1", f"output_dir={tmp_path}", "tracking=none") == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"crux: trainer=ddp in a sweep: [^\n]+\n", err), err
    assert not list(tmp_path.glob("**/config.yaml"))
