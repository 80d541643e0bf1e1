"""`hydra.launcher.address=auto`: two Ray nodes on this machine's loopback, a core each. `pytest -m cluster tests/cluster`."""

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster_sweeps import GRID, JOB, STEPS, check_complete, count_states, find_job_folders, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]
RAY = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
HEAD, SECOND, PORT = "127.0.0.2", "127.0.0.3", 26379


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Return the environment in which `auto` finds the cluster, which demands a token."""
    env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_worker_niceness": "0"}
    head = [*RAY, "--head", f"--node-ip-address={HEAD}", f"--port={PORT}", "--include-dashboard=false"]
    second = [*RAY, f"--node-ip-address={SECOND}", f"--address={HEAD}:{PORT}"]
    place = tmp_path_factory.mktemp("ray") / "log"
    started: list[subprocess.Popen[str]] = []
    with place.open("w") as log:
        for n, command in enumerate((head, second), start=1):
            started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, text=True))
            wait_for(lambda n=n: place.read_text().count("Ray runtime started") == n, started[-1], seconds=200)
    env |= {"RAY_ADDRESS": f"{HEAD}:{PORT}"}  # `auto` looks here first, because other clusters may run on this machine
    yield env
    for process in reversed(started):
        process.terminate()
        process.wait(60)


def test_a_sweep_runs_on_both_nodes(nodes: dict[str, str], command: list[str], tmp_path: Path) -> None:
    line = [*command, *JOB, *GRID, "hydra/launcher=cpus", "hydra.launcher.address=auto", f"output_dir={tmp_path}"]
    ended = subprocess.run(line, env=nodes, capture_output=True, text=True, timeout=2400)
    assert ended.returncode == 0, ended.stderr
    print(ended.stdout)
    found = find_job_folders(tmp_path, "grid")
    assert len(found) == 4
    for folder in found:
        check_complete(folder, STEPS)
    where = {re.findall(r" on (\S+), threads 1,", (folder / "output.log").read_text())[0] for folder in found}
    assert where == {HEAD, SECOND}
    assert count_states(tmp_path) == {"FINISHED": 5}


def test_a_cluster_without_gpus_is_asked_and_refuses(nodes: dict[str, str], command: list[str], tmp_path: Path) -> None:
    line = [*command, *JOB, *GRID, "hydra/launcher=gpus", "hydra.launcher.address=auto", f"output_dir={tmp_path}"]
    ended = subprocess.run(line, env=nodes, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2, ended.stderr
    assert "no machine of Ray's has: 0 GPUs and 1 cores; 0 GPUs and 1 cores" in ended.stderr
