"""`hydra/launcher=slurm` on a real SLURM of one node: `pytest -m cluster tests/cluster` (Debian or Ubuntu, as root; installs slurm-wlm)."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cluster_sweeps import (
    GRID,
    JOB,
    STEPS,
    check_complete,
    count_logged_steps,
    count_states,
    find_job_folders,
    read_metrics,
    seconds_per_step,
    wait_for,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]
Start = Callable[..., "subprocess.Popen[str]"]
SCRIPT = Path(__file__).with_name("slurm.sh")
SLURM = [
    "hydra/launcher=slurm",
    "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=null",
]


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """Return the environment in which SLURM's commands find the cluster."""
    started = subprocess.run([SCRIPT, "start"], stdout=subprocess.PIPE, text=True, check=True)
    name, _, value = started.stdout.strip().partition("=")
    yield os.environ | {name: value}
    subprocess.run([SCRIPT, "stop"], check=True)


def scontrol(env: dict[str, str], *words: str) -> str:
    return subprocess.run(["scontrol", *words], env=env, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def start(slurm: dict[str, str], command: list[str]) -> Iterator[Start]:
    """Return a function that starts a sweep, which ends with the test."""
    begun: list[subprocess.Popen[str]] = []

    def call(*words: str) -> subprocess.Popen[str]:
        line = [*command, *JOB, *SLURM, *words]
        begun.append(subprocess.Popen(line, env=slurm, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return begun[-1]

    yield call
    for process in begun:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)


def test_stopped_jobs_resume_from_their_checkpoints(
    slurm: dict[str, str], command: list[str], start: Start, tmp_path: Path
) -> None:
    """In a 2×2 sweep one job is preempted as by submitit (SIGUSR2), and one is requeued by the cluster (SIGTERM, SIGKILL)."""
    sweep = start(*GRID, f"output_dir={tmp_path}")
    place = tmp_path / "sweeps" / "grid"
    stopped, signalled = {}, []
    for index, seed in enumerate((0, 1)):
        wait_for(lambda s=seed: list(place.glob(f"*loss=local*seed={s}*/checkpoints/last.ckpt")), sweep, seconds=900)
        array = (place / ".slurm_jobs").read_text().strip()
        if seed == 0:
            # not waited for: the job is queued again before all of its steps have the signal, and scancel tries for a minute
            signalled.append(subprocess.Popen(["scancel", "--signal=USR2", f"{array}_{index}"], env=slurm))
        else:
            scontrol(slurm, "requeue", f"{array}_{index}")
        stopped[seed] = f"{array}_{index}"
    out, err = sweep.communicate(timeout=1500)
    assert sweep.returncode == 0, err
    print(out)
    signalled[0].wait(120)
    for job in stopped.values():
        assert "Restarts=1" in scontrol(slurm, "show", "job", job)
    assert not (place / ".slurm_jobs").exists()
    found = find_job_folders(tmp_path, "grid")
    assert len(found) == 4
    for folder in found:
        check_complete(folder, STEPS)
        times = count_logged_steps(tmp_path, folder)
        assert times[1] == times[5] == 1, "it began anew"
    assert count_states(tmp_path) == {
        "FINISHED": 5
    }  # the sweep and its jobs; the stopped jobs resumed in their own runs

    for seed in stopped:  # the same results as without a stop
        alone = tmp_path / f"alone{seed}"
        words = ["loss=local", f"seed={seed}", "tracking=none", f"output_dir={alone}"]
        subprocess.run([*command, *JOB, *words], env=slurm | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
        (reference,) = (alone / "runs").iterdir()
        (folder,) = place.glob(f"*loss=local*seed={seed}*")
        assert read_metrics(folder) == read_metrics(reference)


def test_a_job_that_times_out_is_queued_again_and_resumes(
    slurm: dict[str, str], command: list[str], start: Start, tmp_path: Path
) -> None:
    """A job of about 150 s has a limit of two minutes, and SLURM warns it between 10 and 70 s before that."""
    job = ["loss=e2e", "trainer.batch=4"]
    alone = [*command, *JOB, *job, "trainer.max_steps=50", f"output_dir={tmp_path / 'alone'}"]
    subprocess.run(alone, env=slurm | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    (measured,) = (tmp_path / "alone" / "runs").iterdir()
    steps = round(150 / seconds_per_step(tmp_path / "alone", measured))

    limits = ["hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=10", "hydra.launcher.max_num_timeout=9"]
    sweep = start(*limits, "-m", *job, "sweep_name=long", f"trainer.max_steps={steps}", f"output_dir={tmp_path}")
    out, err = sweep.communicate(timeout=2400)
    assert sweep.returncode == 0, err
    print(out)
    (folder,) = find_job_folders(tmp_path, "long")
    check_complete(folder, steps)
    log = (folder / "output.log").read_text()
    print(*(line for line in log.splitlines() if line.startswith(("process ", "submitit"))), sep="\n")
    stops = len(
        set(re.findall(r"\((.*)\) - Caught signal SIGUSR2 on .*: this job is timed-out", log))
    )  # each is reported twice
    assert stops >= 1
    assert len(re.findall("^process ", log, re.MULTILINE)) == stops + 1
    times = count_logged_steps(tmp_path, folder)
    print(f"{steps} steps; again: {sorted(step for step, n in times.items() if n > 1)}")
    assert times[1] == 1
    assert times.total() - steps <= 5 * stops  # the steps after its last checkpoint
    assert count_states(tmp_path) == {"FINISHED": 2}


def test_ctrl_c_takes_the_jobs_off_the_cluster(slurm: dict[str, str], start: Start, tmp_path: Path) -> None:
    """Ctrl-C cancels the jobs; after a SIGKILL of the launching process the next start waits for its jobs to end, and resumes them."""
    line = [*GRID, "trainer.max_steps=1000000", f"output_dir={tmp_path}"]
    place = tmp_path / "sweeps" / "grid"

    def queue() -> str:
        return subprocess.run(["squeue", "-h"], env=slurm, check=True, capture_output=True, text=True).stdout

    killed = start(*line)
    wait_for(lambda: len(list(place.glob("*/checkpoints/last.ckpt"))) == 2, killed, seconds=900)
    beside = start(*line)
    _, err = beside.communicate(timeout=120)
    assert beside.returncode == 2
    assert f"sweep grid is run by process {killed.pid} on " in err
    killed.kill()
    killed.communicate()
    too_early = start(*line)
    _, err = too_early.communicate(timeout=120)
    assert too_early.returncode == 2
    assert "4 jobs of this sweep are in SLURM's queue" in err
    print(err)
    assert count_states(tmp_path) == {"RUNNING": 3}  # nothing was changed
    subprocess.run(err.strip().rpartition("say ")[2].split(), env=slurm, check=True)
    deadline = time.monotonic() + 60
    while queue():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert count_states(tmp_path) == {"RUNNING": 1, "KILLED": 2}

    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    sweep = start(*line)
    signal.signal(signal.SIGINT, inherited)
    wait_for(lambda: count_states(tmp_path) == {"RUNNING": 3}, sweep, seconds=900)
    sweep.send_signal(signal.SIGINT)
    out, _ = sweep.communicate(timeout=60)
    print(out)
    assert sweep.returncode == 130
    assert "4 jobs, 2 to resume" in out
    assert count_states(tmp_path) == {"KILLED": 3}
    time.sleep(12)  # SLURM's KillWait
    assert queue() == ""
