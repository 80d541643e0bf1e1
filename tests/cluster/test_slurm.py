"""`hydra/launcher=slurm` on a real SLURM of one node: `pytest -m cluster tests/cluster` (Debian or Ubuntu, as root; installs slurm-wlm)."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sweeps_there import GRID, JOB, STEPS, check_whole, folders, judged, logged, states, wait_for

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
    """The environment in which SLURM's commands find the cluster."""
    started = subprocess.run([SCRIPT, "start"], stdout=subprocess.PIPE, text=True, check=True)
    name, _, value = started.stdout.strip().partition("=")
    yield os.environ | {name: value}
    subprocess.run([SCRIPT, "stop"], check=True)


def scontrol(env: dict[str, str], *words: str) -> str:
    return subprocess.run(["scontrol", *words], env=env, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def start(slurm: dict[str, str], command: list[str]) -> Iterator[Start]:
    """Starts a sweep; none outlives its test."""
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


def test_stopped_jobs_go_on_from_their_checkpoints(
    slurm: dict[str, str], command: list[str], start: Start, tmp_path: Path
) -> None:
    """Of a 2×2 sweep one job is preempted as submitit has it (SIGUSR2), one is requeued by the cluster (SIGTERM, SIGKILL)."""
    sweep = start(*GRID, f"output_dir={tmp_path}")
    place = tmp_path / "sweeps" / "grid"
    stopped = {}
    for index, seed in enumerate((0, 1)):
        wait_for(lambda s=seed: list(place.glob(f"*loss=local*seed={s}*/checkpoints/last.ckpt")), sweep, seconds=900)
        array = (place / ".slurm_jobs").read_text().strip()
        if seed == 0:
            # what it says does not matter: the job may be queued again before all of its steps have the signal
            subprocess.run(["scancel", "--signal=USR2", f"{array}_{index}"], env=slurm, check=False)
        else:
            scontrol(slurm, "requeue", f"{array}_{index}")
        stopped[seed] = f"{array}_{index}"
    out, err = sweep.communicate(timeout=1500)
    assert sweep.returncode == 0, err
    print(out)
    for job in stopped.values():
        assert "Restarts=1" in scontrol(slurm, "show", "job", job)
    assert not (place / ".slurm_jobs").exists()
    found = folders(tmp_path, "grid")
    assert len(found) == 4
    for folder in found:
        check_whole(folder, STEPS)
        times = logged(tmp_path, folder)
        assert times[1] == times[5] == 1, "it began anew"
    assert states(tmp_path) == {"FINISHED": 5}  # the sweep and its jobs: the stopped ones went on in their own runs

    for seed in stopped:  # as if nothing had happened
        alone = tmp_path / f"alone{seed}"
        words = ["loss=local", f"seed={seed}", "tracking=none", f"output_dir={alone}"]
        subprocess.run([*command, *JOB, *words], env=slurm | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
        (reference,) = (alone / "runs").iterdir()
        (folder,) = place.glob(f"*loss=local*seed={seed}*")
        assert judged(folder) == judged(reference)


def test_a_job_that_times_out_is_queued_again_and_goes_on(start: Start, tmp_path: Path) -> None:
    """SLURM ends jobs at whole minutes; it warns this one half a minute before its second, or up to a minute earlier."""
    limits = ["hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=30", "hydra.launcher.max_num_timeout=9"]
    steps = 1500
    words = [
        "-m",
        "loss=e2e",
        "sweep_name=long",
        f"trainer.max_steps={steps}",
        "trainer.batch=4",
        f"output_dir={tmp_path}",
    ]
    sweep = start(*limits, *words)
    out, err = sweep.communicate(timeout=1500)
    assert sweep.returncode == 0, err
    print(out)
    (folder,) = folders(tmp_path, "long")
    check_whole(folder, steps)
    logs = "".join(
        path.read_text() for path in (folder, *folder.parent.glob(".submitit/*")) for path in path.rglob("*.*log*")
    )
    assert "Requeued job" in logs
    assert logged(tmp_path, folder)[1] == 1
    assert states(tmp_path) == {"FINISHED": 2}


def test_ctrl_c_takes_the_jobs_off_the_cluster(slurm: dict[str, str], start: Start, tmp_path: Path) -> None:
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    sweep = start(*GRID, "trainer.max_steps=1000000", f"output_dir={tmp_path}")
    signal.signal(signal.SIGINT, inherited)
    wait_for(lambda: list((tmp_path / "sweeps" / "grid").glob("*/checkpoints/last.ckpt")), sweep, seconds=900)
    second = start(*GRID, "trainer.max_steps=1000000", f"output_dir={tmp_path}")
    _, err = second.communicate(timeout=120)
    assert second.returncode == 2
    assert "in SLURM's queue" in err
    sweep.send_signal(signal.SIGINT)
    began = time.monotonic()
    sweep.communicate(timeout=60)
    assert sweep.returncode == 130
    assert time.monotonic() - began < 30
    assert states(tmp_path).keys() == {"KILLED"}
    time.sleep(12)  # SLURM's KillWait
    assert subprocess.run(["squeue", "-h"], env=slurm, check=True, capture_output=True, text=True).stdout == ""
