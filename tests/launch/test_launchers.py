"""Launchers: early refusals, a GPU or a share of the cores per job, isolated failures, and no processes left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from crux.config.errors import UserError
from crux.launch import refusals
from crux.launch.on_ray import JobResources, divide_resources

ROOT = Path(__file__).parents[2]
RECORDING_SCRIPT = [  # a sweep whose jobs only record where and when they run
    sys.executable,
    str(ROOT / "tests" / "support" / "launch_script.py"),
    "-m",
    "sweep_name=here",
    "tracking=none",
]
GPUS = ["hydra/launcher=gpus", "hydra.launcher.ray.init.num_gpus=2"]
RAY = ("raylet", "gcs_server", "ray::")


def find_ray_processes(environment_mark: str) -> list[str]:
    """Return Ray's processes that have this mark in their environment."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if environment_mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().decode().replace("\0", " "))
        except (OSError, ProcessLookupError):
            continue
    return [line for line in found if any(word in line for word in RAY)]


def make_environment() -> dict[str, str]:
    """Return the environment in which a script among the tests finds this checkout's crux."""
    return os.environ | {"PYTHONPATH": str(ROOT / "src")}


def read_records(outputs: Path) -> dict[int, dict[str, Any]]:
    """Return what each job of the sweep recorded about its process, by the job's seed."""
    folders = (outputs / "sweeps" / "here").glob("seed=*/process.json")
    return {int(path.parent.name.partition("=")[2]): json.loads(path.read_text()) for path in folders}


@pytest.mark.slow
def test_jobs_queue_for_the_gpus_and_one_that_dies_stops_no_other(tmp_path: Path) -> None:
    """Run five jobs and one that is killed on two GPUs that Ray is made to believe in; the machine needs none."""
    mark = f"CRUX_TEST_MARK={tmp_path}"
    env = (
        make_environment()
        | dict([mark.split("=", 1)])
        | {"OMP_NUM_THREADS": "64", "MLFLOW_TRACKING_URI": "sqlite:////none"}
    )
    line = [*RECORDING_SCRIPT, *GPUS, "seed=0,1,2,7,3,4", "output_dir=out"]
    ended = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 1, ended.stderr
    assert "ray: 2 of 6 jobs at once, each with 1 GPU and" in ended.stdout
    assert "seed=7: its process ended: " in ended.stdout
    # the table of the sweep has the launcher's reason too
    (table_row,) = [line for line in ended.stderr.splitlines() if "seed=7" in line]
    assert "its process ended: " in table_row
    jobs = read_records(tmp_path / "out")
    assert jobs.keys() == {0, 1, 2, 3, 4}
    assert {job["CUDA_VISIBLE_DEVICES"] for job in jobs.values()} == {"0", "1"}
    assert len({job["pid"] for job in jobs.values()}) == 5
    for gpu in ("0", "1"):
        times = sorted((job["began"], job["ended"]) for job in jobs.values() if job["CUDA_VISIBLE_DEVICES"] == gpu)
        assert all(one[1] <= other[0] for one, other in pairwise(times)), "two jobs shared a GPU"
    cores = len(os.sched_getaffinity(0))
    for job in jobs.values():
        assert 2 * int(job["OMP_NUM_THREADS"]) <= max(cores, 2)
        assert job["CRUX_OUTPUTS"] == os.environ["CRUX_OUTPUTS"]
        assert job["CRUX_CACHE"] == os.environ["CRUX_CACHE"]
        assert job["MLFLOW_TRACKING_URI"] == "sqlite:////none"
        assert job["cwd"] == str(tmp_path)
        assert job["nice"] == os.nice(0)
        assert job["sparsity"] > 0  # a resolver of crux's made it
    first = (tmp_path / "out/sweeps/here/seed=0/output.log").read_text()
    assert f"process {jobs[0]['pid']} on 127.0.0.1" in first
    assert find_ray_processes(mark) == []


@pytest.mark.slow
def test_two_small_jobs_share_a_gpu(tmp_path: Path) -> None:
    gpus = ["hydra/launcher=gpus", "hydra.launcher.ray.init.num_gpus=1", "hydra.launcher.ray.init.num_cpus=2"]
    line = [*RECORDING_SCRIPT, *gpus, "hydra.launcher.gpus_per_job=0.5", "seed=0,1", "output_dir=out"]
    ended = subprocess.run(line, cwd=tmp_path, env=make_environment(), capture_output=True, text=True, timeout=500)
    assert "2 of 2 jobs at once, each with 0.5 GPU and 1 CPU threads" in ended.stdout
    jobs = read_records(tmp_path / "out")
    assert {job["CUDA_VISIBLE_DEVICES"] for job in jobs.values()} == {"0"}
    assert len({job["pid"] for job in jobs.values()}) == 2


@pytest.mark.slow
def test_the_cpus_launcher_runs_at_most_the_given_number_of_processes_and_hides_gpus(tmp_path: Path) -> None:
    words = ["hydra/launcher=cpus", "hydra.launcher.ray.init.num_cpus=4", "hydra.launcher.ray.init.num_gpus=1"]
    line = [*RECORDING_SCRIPT, *words, "hydra.launcher.processes=2", "seed=0,1,2", "output_dir=out"]
    ended = subprocess.run(line, cwd=tmp_path, env=make_environment(), capture_output=True, text=True, timeout=500)
    assert "ray: 2 of 3 jobs at once, each with 2 CPU threads" in ended.stdout
    jobs = read_records(tmp_path / "out")
    assert len({job["pid"] for job in jobs.values()}) == 3
    assert {job["OMP_NUM_THREADS"] for job in jobs.values()} == {"2"}
    assert {job["CUDA_VISIBLE_DEVICES"] for job in jobs.values()} <= {"", None}
    for job in jobs.values():
        together = [other for other in jobs.values() if other["began"] < job["began"] < other["ended"]]
        assert len(together) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_sweep_ends_and_leaves_no_process_behind(
    number: signal.Signals, code: int, tmp_path: Path, short_job: tuple[str, ...], command: list[str]
) -> None:
    """The jobs record in MLflow that they were stopped, and keep their checkpoints."""
    mark = f"CRUX_TEST_MARK={tmp_path}"
    words = ["-m", "seed=0,1,2", "loss=local", "sweep_name=here", "trainer.max_steps=1000000", "trainer.val_every=0"]
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    sweep = subprocess.Popen(
        [*command, *short_job, *words, *GPUS, f"output_dir={tmp_path}"],
        env=os.environ | dict([mark.split("=", 1)]), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    signal.signal(signal.SIGINT, inherited)
    try:
        deadline = time.monotonic() + 500
        while len(list(tmp_path.glob("sweeps/here/*/checkpoints/last.ckpt"))) < 2:
            assert sweep.poll() is None, sweep.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        if number is signal.SIGINT:
            os.killpg(sweep.pid, number)  # as a terminal does
        else:
            sweep.send_signal(number)
        _, err = sweep.communicate(timeout=60)
    finally:
        sweep.kill()
    assert sweep.returncode == code
    assert "Traceback" not in err
    assert find_ray_processes(mark) == []
    import sqlite3

    connection = sqlite3.connect(tmp_path / "mlflow.db")
    found = [status for (status,) in connection.execute("SELECT status FROM runs")]
    connection.close()
    assert found == ["KILLED"] * 3  # the sweep and the two jobs that had begun


@pytest.mark.slow
def test_real_jobs_on_gpus_are_children_of_one_run(
    tmp_path: Path, short_job: tuple[str, ...], command: list[str]
) -> None:
    """Start from another working directory; the text of one job turns out to be damaged, and the other two jobs run."""
    rows = [json.dumps({"text": f"{i} ships and {i * i} whales"}) for i in range(3000)]
    for name, lines in (("a", rows), ("b", [*rows, "no JSON"]), ("c", rows[:-1])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    words = ["-m", "loss=local", "data.path=a.jsonl,b.jsonl,c.jsonl", "sweep_name=here", "output_dir=out"]
    ended = subprocess.run(
        [*command, *short_job, *words, *GPUS], cwd=tmp_path, capture_output=True, text=True, timeout=580
    )
    assert ended.returncode == 1, ended.stderr
    assert "b.jsonl:3001: not JSON" in ended.stderr
    assert len(list((tmp_path / "out/sweeps/here").glob("*/DONE"))) == 2
    import sqlite3

    connection = sqlite3.connect(tmp_path / "out" / "mlflow.db")
    runs = [status for (status,) in connection.execute("SELECT status FROM runs")]
    parents = connection.execute("SELECT DISTINCT value FROM tags WHERE key = 'mlflow.parentRunId'").fetchall()
    connection.close()
    assert len(runs) >= 3
    assert len(parents) == 1


NODE = {"CPU": 16.0, "GPU": 4.0}
NO_LIMITS: dict[str, Any] = {"threads": None, "processes": None}


@pytest.mark.parametrize(
    ("nodes", "asked", "share"),
    [
        ([NODE], {"jobs": 24, "gpus": 1}, JobResources(1, 4, 4)),
        ([NODE], {"jobs": 2, "gpus": 1}, JobResources(1, 8, 2)),
        ([NODE], {"jobs": 24, "gpus": 0.5}, JobResources(0.5, 2, 8)),
        ([NODE], {"jobs": 24, "gpus": 0.1}, JobResources(0.1, 1, 16)),
        ([NODE], {"jobs": 24, "gpus": 1, "threads": 8}, JobResources(1, 8, 2)),
        ([NODE], {"jobs": 24, "gpus": 0}, JobResources(0, 1, 16)),
        ([NODE], {"jobs": 24, "gpus": 0, "processes": 5}, JobResources(0, 3, 5)),
        ([NODE], {"jobs": 3, "gpus": 0, "processes": 5}, JobResources(0, 5, 3)),
        ([{"CPU": 2.0}], {"jobs": 24, "gpus": 0, "processes": 5}, JobResources(0, 1, 2)),
        ([NODE, {"CPU": 8.0, "GPU": 4.0}, {"CPU": 64.0}], {"jobs": 24, "gpus": 1}, JobResources(1, 2, 8)),
        ([{"CPU": 1.0}, {"CPU": 1.0}], {"jobs": 4, "gpus": 0}, JobResources(0, 1, 2)),
    ],
)
def test_neither_gpus_nor_cores_are_given_twice(
    nodes: list[dict[str, float]], asked: dict[str, Any], share: JobResources
) -> None:
    assert divide_resources(nodes, **NO_LIMITS | asked) == share
    if len(nodes) == 1:
        assert share.at_once * share.threads <= nodes[0]["CPU"]
        assert share.at_once * share.gpus <= nodes[0].get("GPU", 0)


@pytest.mark.parametrize(
    ("nodes", "asked"),
    [([{"CPU": 8.0}], {"gpus": 1}), ([NODE], {"gpus": 1, "threads": 17}), ([{"CPU": 8.0, "GPU": 0.25}], {"gpus": 0.5})],
)
def test_what_no_machine_has_is_refused(nodes: list[dict[str, float]], asked: dict[str, Any]) -> None:
    """Ray would wait for such a machine for ever."""
    with pytest.raises(UserError, match="no machine of Ray's has"):
        divide_resources(nodes, **NO_LIMITS | {"jobs": 2} | asked)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


REFUSED = {
    "hydra/launcher=gpus": ("hydra/launcher=gpus", "no GPU on this machine", "hydra/launcher=cpus"),
    "hydra/launcher=gpus hydra.launcher.gpus_per_job=2": ("hydra.launcher.gpus_per_job=2", "0 to 1"),
    "hydra/launcher=cpus hydra.launcher.processes=0": ("hydra.launcher.processes=0", "1 or more"),
    "hydra/launcher=cpus hydra.launcher.processes=two": ("hydra.launcher.processes=two", "whole number"),
    "hydra/launcher=cpus hydra.launcher.threads=0": ("hydra.launcher.threads=0", "1 or more"),
    "hydra/launcher=gpus hydra.launcher.address=127.0.0.1:9": ("address=127.0.0.1:9", "no Ray cluster answers"),
    "hydra/launcher=gpuss": ("hydra/launcher=gpuss", "did you mean gpus?", "cpus", "slurm"),
    "hydra/launcher=gpus hydra.launcher.procesess=2": (
        "hydra.launcher.procesess",
        "did you mean hydra.launcher.processes?",
    ),
}


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(
    line: str, tmp_path: Path, run_crux: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_crux("-m", "seed=0,1", *line.split(), f"output_dir={tmp_path / 'out'}") == 2
    out, err = capfd.readouterr()
    assert err.count("\n") == 1, err
    for part in REFUSED[line]:
        assert part in err
    assert out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("note", ["127.0.0.1:9", None])
def test_a_cluster_that_is_gone_is_not_waited_for(
    note: str | None, tmp_path: Path, run_crux: Callable[..., int], capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Ray remembers where its last cluster was started, and tries to reach it for minutes."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    if note is not None:
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(note)
    line = ("hydra/launcher=gpus", "hydra.launcher.address=auto")
    assert run_crux("-m", "seed=0,1", *line, f"output_dir={tmp_path / 'out'}") == 2
    assert (note or "there is no Ray cluster here") in capfd.readouterr().err


def test_a_launcher_without_a_sweep_is_refused(
    tmp_path: Path, run_crux: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_crux("hydra/launcher=cpus", f"output_dir={tmp_path}") == 2
    assert "add -m" in capfd.readouterr().err


def test_a_machine_without_a_gpu_says_so_before_anything_large_is_imported(tmp_path: Path, command: list[str]) -> None:
    python, main = command
    line = [python, "-X", "importtime", main, "sweeps=seeds", "hydra/launcher=gpus", f"output_dir={tmp_path}"]
    ended = subprocess.run(
        line, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert "no GPU on this machine" in ended.stderr
    imported = {
        line.rpartition("|")[2].strip() for line in ended.stderr.splitlines() if line.startswith("import time:")
    }
    assert "crux.cli" in imported
    assert not imported & {"torch", "lightning", "ray", "mlflow", "transformers"}


@pytest.mark.parametrize(("launcher", "package"), [("gpus", "ray"), ("cpus", "ray"), ("slurm", "submitit")])
def test_a_missing_extra_is_reported_with_its_pip_command(
    launcher: str,
    package: str,
    run_crux: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(refusals, "find_spec", lambda name: None)
    assert run_crux("-m", f"hydra/launcher={launcher}", f"output_dir={tmp_path}") == 2
    err = capfd.readouterr().err
    assert f"needs {package}" in err
    assert f'pip install -e ".[{"ray" if package == "ray" else "slurm"}]"' in err


def test_jobs_that_may_be_in_slurms_queue_are_not_started_again(
    run_crux: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """This holds for any launcher, because such jobs run without the process that started them."""
    note = tmp_path / "sweeps" / "here" / ".slurm_jobs"
    note.parent.mkdir(parents=True)
    note.write_text("17\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    for answer, message in (
        (None, f"if you know that none is, remove {note}"),
        ("echo no route >&2; exit 1", f"if you know that none is, remove {note}"),
        ("echo 17_0; echo 17_2", "2 jobs of this sweep are in SLURM's queue: wait for them, or run scancel 17"),
    ):
        if answer is not None:
            (tmp_path / "squeue").write_text(f"#!/bin/sh\n{answer}\n")
            (tmp_path / "squeue").chmod(0o755)
        assert run_crux("-m", "seed=0,1", "sweep_name=here", f"output_dir={tmp_path}") == 2
        assert message in capfd.readouterr().err
    assert not (tmp_path / "mlflow.db").exists()


def test_slurm_is_refused_where_there_is_no_sbatch(
    run_crux: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_crux("-m", "hydra/launcher=slurm", f"output_dir={tmp_path}") == 2
    assert "there is no sbatch here" in capfd.readouterr().err


def test_gpus_are_counted_unless_all_are_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: a (UUID: x)'\necho '  MIG 1g.5gb Device 0: y'\necho 'GPU 1: b (UUID: z)'\n")
    smi.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(refusals, "Path", lambda place: tmp_path)  # a machine without device files
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert refusals.count_gpus() == 2
    for hidden in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert refusals.count_gpus() == 0
