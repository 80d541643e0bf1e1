"""Checks that a launcher can work on this machine, before anything is started and without importing Ray, submitit or torch."""

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from crux.config.errors import UserError
from crux.config.paths import CHECKOUT, ROOT


def check_ray(*, processes: int | None, init: Mapping[str, Any], remote: Mapping[str, Any]) -> None:
    """Check that `hydra/launcher=gpus` or `cpus` can start.

    Args:
        processes: maximum number of jobs at once; None: as many as the resources allow.
        init: arguments of `ray.init`.
        remote: arguments of `ray.remote` for each job.

    Raises:
        UserError: if not, in one line.
    """
    gpus = remote["num_gpus"]
    _check_installed(f"hydra/launcher={'gpus' if gpus else 'cpus'}", package="ray", extra="ray")
    if not 0 <= gpus <= 1:
        raise UserError(f"hydra.launcher.gpus_per_job={gpus:g}: must be from 0 to 1, a job uses one GPU at most")
    for key, value in (("processes", processes), ("threads", remote["num_cpus"])):
        if value is not None and value < 1:
            raise UserError(f"hydra.launcher.{key}={value}: must be 1 or more")
    if init["address"] is not None:
        _check_cluster_answers(init["address"])
    elif gpus and not (count_gpus() if init["num_gpus"] is None else init["num_gpus"]):
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = f" (CUDA_VISIBLE_DEVICES={hidden!r})" if hidden is not None else ""
        raise UserError(
            f"hydra/launcher=gpus: there is no GPU on this machine{why}; "
            "hydra/launcher=cpus runs several jobs at once on its cores"
        )


def check_slurm() -> None:
    """Check that `hydra/launcher=slurm` can start.

    Raises:
        UserError: if not, in one line.
    """
    _check_installed("hydra/launcher=slurm", package="submitit", extra="slurm")
    for command in ("sbatch", "srun", "squeue"):
        if shutil.which(command) is None:
            raise UserError(
                f"hydra/launcher=slurm: there is no {command} here; start the sweep on a machine of the cluster"
            )


def check_no_launcher_without_sweep(launcher: Mapping[str, Any]) -> None:
    """Check that a single run, without -m, has no `hydra/launcher=`, which Hydra would ignore silently.

    Raises:
        UserError: if it has one.
    """
    if launcher["_target_"].startswith("hydra_plugins.crux_launchers."):
        raise UserError("hydra/launcher starts the jobs of a sweep: add -m, or choose a sweep with sweeps=")


def count_gpus() -> int:
    """Return the number of GPUs of this machine, from device files or nvidia-smi; 0 if CUDA_VISIBLE_DEVICES hides all of them.

    HIP_VISIBLE_DEVICES has the same effect if CUDA_VISIBLE_DEVICES is not set. If these variables show only some of the GPUs,
    all GPUs are counted, because it only matters whether there is one.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", os.environ.get("HIP_VISIBLE_DEVICES"))
    if hidden is not None and hidden.split(",")[0].strip() in ("", "-1", "NoDevFiles"):
        return 0
    files = [p for p in Path("/dev").glob("nvidia*") if p.name.removeprefix("nvidia").isdigit()]
    files = files or (list(Path("/dev/dri").glob("renderD*")) if Path("/dev/kfd").exists() else [])
    if files or (smi := shutil.which("nvidia-smi")) is None:
        return len(files)
    try:  # the Windows subsystem for Linux has no device files
        listed = subprocess.run([smi, "-L"], capture_output=True, text=True, timeout=20, check=False).stdout
    except subprocess.TimeoutExpired:
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def _check_installed(option: str, *, package: str, extra: str) -> None:
    """Check that the package that an option needs is installed; `extra` is crux's extra that installs it."""
    if find_spec(package) is None:
        what = f'-e ".[{extra}]"' if ROOT == CHECKOUT else f'"crux-interp[{extra}]"'
        raise UserError(f"{option} needs {package}, which is not installed: pip install {what}")


def _check_cluster_answers(address: str) -> None:
    """Check that something accepts connections at the address of a Ray cluster.

    Ray itself would wait for an answer instead, also if `auto` stands for an earlier cluster that has ended.
    """
    place = _find_last_cluster() if address == "auto" else address
    if not place:
        raise UserError("hydra.launcher.address=auto: there is no Ray cluster here; start one: ray start --head")
    host, _, port = place.rpartition(":")
    if not port.isdigit():  # there is no port to connect to: Ray itself interprets the address, such as `local`
        return
    # `ray://host:port`, the address of a Ray client, is rejected below: `ray://host` is not the name of a host
    try:
        socket.create_connection((host, int(port)), timeout=1.0).close()
    except OSError as error:
        where = "there" if place == address else f"at {place}"
        raise UserError(
            f"hydra.launcher.address={address}: no Ray cluster answers {where} ({error}); start one: ray start --head"
        ) from None


def _find_last_cluster() -> str:
    """Return the address that Ray uses for `auto`: $RAY_ADDRESS, or that of the last cluster started on this machine; empty if neither."""
    if "RAY_ADDRESS" in os.environ:
        return os.environ["RAY_ADDRESS"]
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    address_file = Path(folder, "ray", "ray_current_cluster")
    return address_file.read_text("utf-8").strip() if address_file.is_file() else ""
