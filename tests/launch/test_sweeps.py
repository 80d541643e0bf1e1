"""Sweeps through the command line: done, failed, interrupted and new jobs, in the folders, in MLflow and in the exit code."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from crux.config.errors import UserError
from crux.runs.mlflow import default_uri
from crux.sae.options import SaeJob

GRID = ("loss=local,e2e_ds", "hook_point=blocks.5.hook_resid_post,blocks.6.hook_resid_pre", "evaluation.latents=0")
"""A 2×2 grid, of which one job fails while it runs."""


def find_sweep(outputs: Path) -> Path:
    (sweep,) = (outputs / "sweeps").iterdir()
    return sweep


def read_marks(sweep: Path) -> dict[str, str]:
    """Return DONE, FAILED or an empty text for each job."""
    jobs = [p for p in sweep.iterdir() if p.is_dir() and "loss=" in p.name]
    return {p.name: "".join(m for m in ("DONE", "FAILED") if (p / m).exists()) for p in jobs}


def read_runs(outputs: Path) -> tuple[Run, dict[str, Run]]:
    """Return the sweep's run in MLflow, and its children by job."""
    client = MlflowClient(default_uri(outputs))
    experiment = client.get_experiment_by_name("crux")
    assert experiment is not None
    parent = (find_sweep(outputs) / "mlflow_run_id").read_text().strip()
    everything = list(client.search_runs([experiment.experiment_id]))
    children = [r for r in everything if r.data.tags.get("mlflow.parentRunId") == parent]
    assert len(everything) == 1 + len(children), "no run but the sweep's own is without a parent"
    return client.get_run(parent), {r.data.tags["job"]: r for r in children}


@pytest.fixture(scope="module")
def two_by_two(
    run_crux: Callable[..., int], short_job: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, tuple[str, ...]]:
    """The sweep with one failing job, after its first start."""
    import crux.sae.job

    original = crux.sae.job.run

    def fail_once(config: SaeJob, *, folder: Path) -> None:
        if config.loss.name == "e2e_ds" and config.hook_point == "blocks.5.hook_resid_post":
            raise UserError("the text was deleted while the sweep ran")
        original(config, folder=folder)

    outputs = tmp_path_factory.mktemp("two_by_two")
    line = (*short_job, "-m", *GRID, f"output_dir={outputs}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crux.sae.job, "run", fail_once)
        assert run_crux(*line) == 1
    return outputs, line


def test_one_failing_job_stops_no_other(two_by_two: tuple[Path, tuple[str, ...]]) -> None:
    outputs, _ = two_by_two
    found = read_marks(find_sweep(outputs))
    assert sorted(found.values()) == ["DONE", "DONE", "DONE", "FAILED"]
    (failed,) = [name for name, mark in found.items() if mark == "FAILED"]
    assert "loss=e2e_ds" in failed
    assert "the text was deleted" in (find_sweep(outputs) / failed / "FAILED").read_text().splitlines()[0]


def test_a_parent_run_and_one_child_per_job(two_by_two: tuple[Path, tuple[str, ...]]) -> None:
    outputs, _ = two_by_two
    parent, children = read_runs(outputs)
    assert parent.info.status == "FAILED"
    assert parent.info.run_name == find_sweep(outputs).name
    done = {name for name, mark in read_marks(find_sweep(outputs)).items() if mark == "DONE"}
    assert children.keys() == done
    for name, child in children.items():
        assert child.info.status == "FINISHED"
        assert child.data.params["loss"] == child.data.tags["loss"] in name
        metrics = json.loads((find_sweep(outputs) / name / "metrics.json").read_text())
        for metric in ("final/l0", "final/ce_increase", "final/alive_heldout", "final/alive_heldout_frac"):
            assert child.data.metrics[metric] == metrics[metric]
        assert float(child.data.params["sparsity"]) == 8.0 or child.data.params["loss"] == "e2e_ds"


def test_a_second_start_runs_nothing_and_reports_failures_again(
    two_by_two: tuple[Path, tuple[str, ...]],
    run_crux: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import crux.sae.job

    outputs, line = two_by_two
    before = read_runs(outputs)[0].info.run_id

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("nothing is left to run")

    monkeypatch.setattr(crux.sae.job, "run", never)
    assert run_crux(*line) == 1
    out, err = capfd.readouterr()
    assert "4 jobs, 3 done before, 1 failed before" in out
    assert "1 failed; retry_failed=true" in err
    assert "the text was deleted" in err
    assert read_runs(outputs)[0].info.run_id == before


@pytest.mark.slow
def test_failed_jobs_are_retried_on_request_and_a_new_value_is_added(
    run_crux: Callable[..., int], short_job: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import crux.sae.job

    original, started = crux.sae.job.run, []

    def broken(config: object, *, folder: Path) -> None:
        started.append(folder.name)
        raise RuntimeError("the machine's\nfault")

    line = (*short_job, "loss=local", "evaluation.latents=0", "sweep_name=mine", f"output_dir={tmp_path}")
    monkeypatch.setattr(crux.sae.job, "run", broken)
    assert run_crux("-m", *line, "seed=0,1") == 1
    assert len(started) == 2
    sweep = tmp_path / "sweeps" / "mine"
    (first, *_) = sorted(sweep.glob("*/FAILED"))
    assert first.read_text().startswith("RuntimeError: the machine's fault\nTraceback (most recent call last)")
    assert read_runs(tmp_path)[0].info.status == "FAILED"
    assert run_crux("-m", *line, "seed=0,1,2") == 1  # a new value; failed jobs are not run again
    assert len(started) == 3

    def works(config: object, *, folder: Path) -> None:
        started.append(folder.name)
        original(config, folder=folder)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(crux.sae.job, "run", works)
    assert run_crux("-m", *line, "seed=0,1,2", "retry_failed=true") == 0
    assert len(started) == 6
    assert set(read_marks(sweep).values()) == {"DONE"}
    parent, children = read_runs(tmp_path)
    assert parent.info.status == "FINISHED"
    assert [c.info.status for c in children.values()] == ["FINISHED"] * 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-m seed=0,1 lossy=1", "lossy: no such key"),
        ("-m loss=local,nope", "loss=nope: no such option"),
        ("sweeps=paretto", "sweeps=paretto: no such option; did you mean pareto?"),
        (
            "sweeps=pareto loss=fisher",
            "nothing is left of this sweep with loss=fisher; it has e2e, e2e_ds, local",
        ),
        ("-m tracking=none,mlflow", "-m starts a grid of jobs"),
        ("-m tracking=none,mlflow seed=0", "would share the folder"),
        ("-m layer=2,99", "job layer=99 of the grid: layer=99: the model has 8 layers"),
        (
            "-m sae=topk sae.k=32,5000",
            "job sae.k=5000,sae=topk of the grid: sae.k=5000: the dictionary has 2048 latents",
        ),
        (
            "-m loss=local,e2e_ds hook_point=blocks.7.hook_resid_post",
            "job hook_point=blocks.7.hook_resid_post,loss=e2e_ds of the grid: loss=e2e_ds: no later residual",
        ),
        ("-m sae=batch_topk,relu loss.skip_positions=[0]", "the loss cannot leave out any token"),
        ("-m loss=local,fisher loss.kl=1", "loss.kl: loss=local has no such key; loss=e2e, loss=e2e_ds have it"),
        ("-m sweeps=pareto,layers", "sweeps=pareto,layers: start them one after the other, sweeps=pareto, then"),
        ("sweeps=pareto,layers", "start them one after the other"),
        ("-m", "-m starts a grid of jobs: give several values"),
        ("-m layer=range(5,2)", "layer=range(5,2): has no values to try"),
        ("-m layer=range(0,5,0)", "layer=range(0,5,0): has no values to try"),
        ("-m layer=glob(*)", "layer is none; list the values"),
        ("-m loss=glob(z*)", "chooses none of e2e, e2e_ds"),
        ("-m layer=interval(1,3)", "an interval has no values to try"),
        ("-m layer=range(2,", "layer: range(2, cannot be read"),
        ("-m seed=range(0,200000)", "has more than 10,000 values"),
        ("-m seed=range(0,9000) layer=range(0,8)", "the grid has 72,000 jobs"),
        ("-m seed=0,1 tracking.uri=http://127.0.0.1:99999", "Port out of range"),
        ("sweeps=pareto experiment=report", "does not fit this experiment"),
        ("experiment=report sweep=paretto", "sweep=paretto: no such sweep"),
        ("experiment=report", "give sweep=<name>; in "),
    ],
)
def test_an_error_of_the_whole_sweep_is_one_line_and_starts_nothing(
    line: str, said: str, run_crux: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_crux(*line.split(), f"output_dir={tmp_path}") == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    assert said in err
    assert not list(tmp_path.rglob("FAILED"))


@pytest.mark.slow
def test_a_finished_job_of_another_configuration_is_not_written_over(
    run_crux: Callable[..., int], short_job: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = (
        *short_job,
        "-m",
        "loss=local",
        "evaluation.latents=0",
        "tracking=none",
        "sweep_name=x",
        f"output_dir={tmp_path}",
    )
    assert run_crux(*line) == 0
    (config,) = tmp_path.rglob("config.yaml")
    config.write_text(config.read_text().replace("max_steps: 4", "max_steps: 5"))
    capfd.readouterr()
    assert run_crux(*line) == 2
    assert (
        "holds a finished run with another configuration (there / here): trainer.max_steps: 5 / 4"
        in capfd.readouterr().err
    )


@pytest.mark.slow
def test_a_long_command_line_still_has_a_folder(
    run_crux: Callable[..., int], short_job: tuple[str, ...], tmp_path: Path
) -> None:
    hooks = ",".join(f"blocks.{k}.hook_resid_pre" for k in (1, 2, 3, 4, 5, 6, 7))
    line = (
        *short_job,
        "-m",
        "loss=e2e_ds",
        "layer=0",
        f"loss.downstream_hooks=[{hooks}]",
        "evaluation.latents=0",
        "seed=0,1",
    )
    assert run_crux(*line, "tracking=none", f"output_dir={tmp_path}") == 0
    jobs = [p.parent.name for p in find_sweep(tmp_path).glob("*/DONE")]
    assert len(jobs) == 2
    assert all(len(name.encode()) <= 180 for name in [*jobs, find_sweep(tmp_path).name])


def start(command: list[str], *line: str) -> subprocess.Popen[str]:
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    process = subprocess.Popen([*command, *line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, inherited)
    return process


def wait_for(process: subprocess.Popen[str], there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 500
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_sweep_reports_its_state_and_is_resumed(
    number: signal.Signals, code: int, run_crux: Callable[..., int], tmp_path: Path, short_job: tuple[str, ...],
    command: list[str],
) -> None:  # fmt: skip
    """A sweep that is stopped after the second job's first checkpoint ends, when started again, with the tables of an uninterrupted one."""
    line = (*short_job, "-m", "loss=local,e2e", "seed=0", "trainer.max_steps=40", "trainer.val_every=0", "sweep_name=s")
    here = f"output_dir={tmp_path / 'stopped'}"
    process = start(command, *line, here)
    sweep = tmp_path / "stopped" / "sweeps" / "s"
    try:
        wait_for(process, lambda: len(list(sweep.glob("*/checkpoints/last.ckpt"))) == 2)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
    assert process.returncode == code
    assert "Traceback" not in err
    parent, children = read_runs(tmp_path / "stopped")
    states = [child.info.status for child in children.values()]
    if number == signal.SIGKILL:  # no process was left to record it
        assert (parent.info.status, sorted(states)) == ("RUNNING", ["FINISHED", "RUNNING"])
    else:
        assert (parent.info.status, sorted(states)) == ("KILLED", ["FINISHED", "KILLED"])
    assert sorted(read_marks(sweep).values()) == ["", "DONE"]

    assert run_crux(*line, here) == 0  # the lock ended with the process
    parent, children = read_runs(tmp_path / "stopped")
    assert (parent.info.status, [c.info.status for c in children.values()]) == ("FINISHED", ["FINISHED"] * 2)
    assert run_crux(*line, f"output_dir={tmp_path / 'whole'}") == 0
    whole = tmp_path / "whole" / "sweeps" / "s"
    for job in ("loss=local", "loss=e2e"):
        one, other = (json.loads(next(place.glob(f"*{job},*/metrics.json")).read_text()) for place in (sweep, whole))
        for metrics in (one, other):
            del metrics["final/tokens_per_second"]
        assert one == other


@pytest.mark.slow
def test_a_sweep_that_runs_is_not_started_again(
    run_crux: Callable[..., int], tmp_path: Path, short_job: tuple[str, ...], command: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The second start is refused in one line and changes nothing; the first continues."""
    words = ("-m", "loss=local", "seed=0,1", "trainer.max_steps=1000000", "trainer.val_every=0", "sweep_name=s")
    line = (*short_job, *words, f"output_dir={tmp_path}")
    process = start(command, *line)
    sweep = tmp_path / "sweeps" / "s"
    try:
        wait_for(process, lambda: bool(list(sweep.glob("*/checkpoints/last.ckpt"))))
        capfd.readouterr()
        assert run_crux(*line, "retry_failed=true") == 2
        out, err = capfd.readouterr()
        assert (out, err.count("\n")) == ("", 1), err
        assert f"sweep s is run by process {process.pid} on " in err
        parent, children = read_runs(tmp_path)
        assert [run.info.status for run in (parent, *children.values())] == ["RUNNING", "RUNNING"]
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_runs_that_an_earlier_start_left_running_are_corrected(
    run_crux: Callable[..., int], short_job: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SIGKILLed job that now fails before it reaches MLflow does not stay RUNNING."""
    import crux.sae.job

    line = (
        *short_job,
        "-m",
        "loss=local",
        "evaluation.latents=0",
        "seed=0,1",
        "sweep_name=s",
        f"output_dir={tmp_path}",
    )
    assert run_crux(*line) == 0
    _, children = read_runs(tmp_path)
    client = MlflowClient(default_uri(tmp_path))
    for name, child in children.items():
        client.update_run(child.info.run_id, status="RUNNING")
        os.remove(tmp_path / "sweeps" / "s" / name / "DONE")

    def broken(config: object, *, folder: Path) -> None:
        raise RuntimeError("too early")

    monkeypatch.setattr(crux.sae.job, "run", broken)
    assert run_crux(*line) == 1
    assert {c.info.status for c in read_runs(tmp_path)[1].values()} == {"KILLED"}
