"""Jobs on Ray: each in a fresh process, with its own GPU (or share of one) and its share of the cores; the others queue."""

import contextlib
import logging
import os
import secrets
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hydra.core.utils import JobReturn

from crux.config.errors import UserError
from crux.launch.work import Work, carried

GRACE = 5.0
"""Seconds that stopped jobs have to say in MLflow that they were stopped."""


class Share(NamedTuple):
    """What each job gets."""

    gpus: float
    threads: int
    at_once: int
    """Jobs that run at the same time."""


def run_on_ray(
    jobs: Sequence[Work], *, processes: int | None, init: Mapping[str, Any], remote: Mapping[str, Any]
) -> list[JobReturn]:
    """Runs the jobs and waits for them; one whose process dies is reported on the screen and stops no other.

    Raises:
        UserError: where the cluster is not to be found, or has no node that a job would fit on.
    """
    with cluster(init) as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        share = shared(nodes, jobs=len(jobs), gpus=remote["num_gpus"], threads=remote["num_cpus"], processes=processes)
        gpu = f"{share.gpus:g} GPU and " if share.gpus else ""
        print(
            f"ray: {share.at_once} of {len(jobs)} jobs at once, each with {gpu}{share.threads} CPU threads", flush=True
        )
        # a fresh process a job: what CUDA or a library keeps never reaches the next. What was lost, the next start goes on with
        options = {**remote, "num_gpus": share.gpus, "num_cpus": share.threads, "max_calls": 1, "max_retries": 0}
        return _run_all(ray, ray.remote(**options)(run), jobs, share)


def run(work: Work) -> None:
    """What the job's process does."""
    from ray.util import get_node_ip_address

    work(get_node_ip_address())


def _run_all(ray: Any, call: Any, jobs: Sequence[Work], share: Share) -> list[JobReturn]:
    waiting, running, ended = list(jobs)[::-1], {}, {}
    stopped: list[int] = []  # Ray makes exit code 1 of what a signal's handler raises while it waits
    handler = signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    try:
        while waiting or running:
            while waiting and len(running) < share.at_once:
                work = waiting.pop()
                work.threads = share.threads
                work.environment |= {} if share.gpus else {"CUDA_VISIBLE_DEVICES": ""}
                running[call.remote(work)] = work
            for reference in ray.wait(list(running), timeout=1.0)[0]:  # short, so that a signal is seen
                work = running.pop(reference)
                ended[work.name] = work.returned(error := _error(ray, reference))
                print(f"[{len(ended)}/{len(jobs)}] {work.name}: {work.state(error)}", flush=True)
            if stopped:
                sys.exit(128 + stopped[0])
    except BaseException:
        for reference in running:
            ray.cancel(reference, force=False)  # raises KeyboardInterrupt in the job
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=GRACE)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)
    return [ended[work.name] for work in jobs]


def _error(ray: Any, reference: Any) -> Exception | None:
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # the job raised; Ray adds its own lines
        return error.cause
    except ray.exceptions.RayError as error:  # its process died
        return error
    return None


def shared(
    nodes: Sequence[Mapping[str, float]], *, jobs: int, gpus: float, threads: int | None, processes: int | None
) -> Share:
    """How many jobs run at once, and what each gets, so that on no node GPUs or cores are given twice.

    Args:
        nodes: each node's resources, as Ray names them.

    Raises:
        UserError: where no node has what one job needs, which Ray would wait for.
    """

    def room(node: Mapping[str, float]) -> int:
        by_cores = int(node.get("CPU", 0)) // (threads or 1)
        return min(by_cores, int(node.get("GPU", 0) / gpus + 1e-6)) if gpus else by_cores

    rooms = [(room(node), int(node.get("CPU", 0))) for node in nodes if room(node)]
    if not rooms:
        needed = f"{gpus:g} GPU and " if gpus else ""
        there = "; ".join(f"{n.get('GPU', 0):g} GPUs and {n.get('CPU', 0):g} cores" for n in nodes)
        raise UserError(f"a job needs {needed}{threads or 1} CPU threads, which no machine of Ray's has: {there}")
    at_once = min(sum(n for n, _ in rooms), jobs, processes or jobs)
    if threads is None:  # the cores of a node are shared by as many jobs as Ray may put there
        threads = min(cores // min(n, at_once) for n, cores in rooms)
    return Share(gpus, threads, at_once)


@contextlib.contextmanager
def cluster(init: Mapping[str, Any]) -> Iterator[Any]:
    """Ray: a cluster that runs already, or one on this machine alone that ends with the sweep.

    The own one listens on loopback only and takes a token that nobody else has: whoever reaches a Ray port can run code.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a job without GPUs sees none
    options = {k: v for k, v in init.items() if v is not None}
    if init["address"] is None:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's word for loopback, on Linux too
        os.environ.setdefault("RAY_worker_niceness", "0")  # else 15: beside other work a job would stand still
        options = {"address": "local", "include_dashboard": False, "object_store_memory": 80 * 2**20} | options
    import ray
    import psutil  # isort: skip - Ray brings its own

    handler, others = signal.getsignal(signal.SIGTERM), psutil.Process().children(recursive=True)
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": carried()})
    except ConnectionError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"hydra.launcher.address={init['address']}: {reason} Start one: ray start --head") from error
    try:
        signal.signal(signal.SIGTERM, handler)  # Ray puts its own there
        yield ray
    finally:
        rays = [process for process in psutil.Process().children(recursive=True) if process not in others]
        ray.shutdown()
        for process in psutil.wait_procs(rays, timeout=2.0)[1]:  # workers that have not seen yet that all is over
            process.kill()
