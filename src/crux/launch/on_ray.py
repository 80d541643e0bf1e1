"""Run the jobs of a sweep on Ray, each in a fresh process with its own GPU (or share of one) and its share of the cores."""

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
from crux.launch.work import Work, environment_to_pass_on

GRACE = 5.0
"""Seconds that stopped jobs have to record in MLflow that they were stopped."""


class JobResources(NamedTuple):
    """The resources of each job."""

    gpus: float
    threads: int
    at_once: int
    """Jobs that run at the same time."""


def run_on_ray(
    jobs: Sequence[Work], *, processes: int | None, init: Mapping[str, Any], remote: Mapping[str, Any]
) -> list[JobReturn]:
    """Run the jobs and wait for them; a job whose process dies is reported on the screen and stops no other.

    Raises:
        UserError: if the cluster is not found, or has no node with enough resources for a job.
    """
    with connect_to_ray(init) as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        share = divide_resources(
            nodes, jobs=len(jobs), gpus=remote["num_gpus"], threads=remote["num_cpus"], processes=processes
        )
        gpu = f"{share.gpus:g} GPU and " if share.gpus else ""
        print(
            f"ray: {share.at_once} of {len(jobs)} jobs at once, each with {gpu}{share.threads} CPU threads", flush=True
        )
        # a fresh process per job: nothing that CUDA or a library keeps reaches the next job. The next start resumes lost jobs
        options = {**remote, "num_gpus": share.gpus, "num_cpus": share.threads, "max_calls": 1, "max_retries": 0}
        return _run_all(ray, ray.remote(**options)(run_work), jobs, share)


def run_work(work: Work) -> None:
    """Run a job in its process."""
    from ray.util import get_node_ip_address

    work(get_node_ip_address())


def _run_all(ray: Any, call: Any, jobs: Sequence[Work], share: JobResources) -> list[JobReturn]:
    waiting, running, ended = list(jobs)[::-1], {}, {}
    stopped: list[int] = []  # Ray turns anything that a signal handler raises while Ray waits into exit code 1
    handler = signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    try:
        while waiting or running:
            while waiting and len(running) < share.at_once:
                work = waiting.pop()
                work.threads = share.threads
                work.environment |= {} if share.gpus else {"CUDA_VISIBLE_DEVICES": ""}
                running[call.remote(work)] = work
            for reference in ray.wait(list(running), timeout=1.0)[0]:  # short, so that a signal is noticed
                work = running.pop(reference)
                ended[work.name] = work.to_job_return(error := _error(ray, reference))
                print(f"[{len(ended)}/{len(jobs)}] {work.name}: {work.describe_end(error)}", flush=True)
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


def divide_resources(
    nodes: Sequence[Mapping[str, float]], *, jobs: int, gpus: float, threads: int | None, processes: int | None
) -> JobResources:
    """Return how many jobs run at once and the resources of each, such that no GPU or core of a node is assigned twice.

    Args:
        nodes: the resources of each node, by Ray's names.

    Raises:
        UserError: if no node has enough resources for one job; Ray would wait for such a node.
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
    if threads is None:  # the jobs that Ray may put on a node share its cores
        threads = min(cores // min(n, at_once) for n, cores in rooms)
    return JobResources(gpus, threads, at_once)


@contextlib.contextmanager
def connect_to_ray(init: Mapping[str, Any]) -> Iterator[Any]:
    """Connect to a running Ray cluster, or start one on this machine that ends with the sweep.

    A cluster that is started here listens on loopback only and demands a secret token, because anyone who reaches a Ray port can run
    code.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a job without GPUs sees none
    options = {k: v for k, v in init.items() if v is not None}
    if init["address"] is None:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # makes Ray listen on loopback only, on Linux too
        os.environ.setdefault(
            "RAY_worker_niceness", "0"
        )  # Ray's default of 15 would starve jobs while other programs run
        options = {"address": "local", "include_dashboard": False, "object_store_memory": 80 * 2**20} | options
    import ray
    import psutil  # isort: skip - Ray brings its own copy

    handler, others = signal.getsignal(signal.SIGTERM), psutil.Process().children(recursive=True)
    try:
        ray.init(
            **options,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": environment_to_pass_on()},
        )
    except ConnectionError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"hydra.launcher.address={init['address']}: {reason} Start one: ray start --head") from error
    try:
        signal.signal(signal.SIGTERM, handler)  # Ray has installed its own handler
        yield ray
    finally:
        rays = [process for process in psutil.Process().children(recursive=True) if process not in others]
        ray.shutdown()
        for process in psutil.wait_procs(rays, timeout=2.0)[
            1
        ]:  # workers that have not noticed yet that Ray has shut down
            process.kill()
