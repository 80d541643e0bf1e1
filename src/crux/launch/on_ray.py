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

MAX_STOP_TIME = 5.0
"""Seconds that stopped jobs have to record in MLflow that they were stopped."""


class JobResources(NamedTuple):
    """The resources of each job of a sweep, and how many jobs run at the same time."""

    gpus: float
    """GPUs per job, from 0 to 1; 0.5: two jobs share a GPU."""
    threads: int
    """CPU threads per job."""
    at_once: int
    """Maximum number of jobs at the same time."""


def run_on_ray(
    jobs: Sequence[Work], *, processes: int | None, init: Mapping[str, Any], remote: Mapping[str, Any]
) -> list[JobReturn]:
    """Run the jobs, wait until all have ended, and return how each ended, in the order of `jobs`.

    A job whose process dies is reported on the screen and returned as failed; the other jobs continue.

    Args:
        processes: maximum number of jobs at once; None: as many as the resources allow.
        init: arguments of `ray.init`.
        remote: arguments of `ray.remote` for each job.

    Raises:
        UserError: if the cluster is not found, or has no node with enough resources for a job.
    """
    with connect_to_ray(init) as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        resources = divide_resources(
            nodes, jobs=len(jobs), gpus=remote["num_gpus"], threads=remote["num_cpus"], processes=processes
        )
        gpu = f"{resources.gpus:g} GPU and " if resources.gpus else ""
        print(
            f"ray: {resources.at_once} of {len(jobs)} jobs at once, each with {gpu}{resources.threads} CPU threads",
            flush=True,
        )
        options = {
            **remote,
            "num_gpus": resources.gpus,
            "num_cpus": resources.threads,
            "max_calls": 1,  # a fresh process per job: nothing that CUDA or a library keeps reaches the next job
            "max_retries": 0,  # Ray does not repeat a job whose process died; the next start of the sweep resumes it
        }
        return _run_all(ray, ray.remote(**options)(run_work), jobs, resources)


def run_work(work: Work) -> None:
    """Run a job in the process that Ray has started for it."""
    from ray.util import get_node_ip_address

    work(get_node_ip_address())


def _run_all(ray: Any, remote_run: Any, jobs: Sequence[Work], resources: JobResources) -> list[JobReturn]:
    """Run the jobs by Ray's remote function `remote_run`, and return how each ended."""
    waiting, running, ended = list(jobs)[::-1], {}, {}
    # the handler only notes the signal, because Ray turns anything that a handler raises while Ray waits into exit code 1
    stopped: list[int] = []
    handler = signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    try:
        while waiting or running:
            while waiting and len(running) < resources.at_once:
                work = waiting.pop()
                work.threads = resources.threads
                work.environment |= {} if resources.gpus else {"CUDA_VISIBLE_DEVICES": ""}
                running[remote_run.remote(work)] = work
            for reference in ray.wait(list(running), timeout=1.0)[0]:  # short, so that a signal is noticed
                work = running.pop(reference)
                ended[work.name] = work.to_job_return(error := _find_error(ray, reference))
                print(f"[{len(ended)}/{len(jobs)}] {work.name}: {work.describe_end(error)}", flush=True)
            if stopped:
                sys.exit(128 + stopped[0])
    except BaseException:
        for reference in running:
            ray.cancel(reference, force=False)  # raises KeyboardInterrupt in the job
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=MAX_STOP_TIME)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)
    return [ended[work.name] for work in jobs]


def _find_error(ray: Any, reference: Any) -> Exception | None:
    """Return what a job raised, or why its process died; None if it ended normally."""
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

    def count_jobs(node: Mapping[str, float]) -> int:
        """Return how many jobs fit on a node."""
        by_cores = int(node.get("CPU", 0)) // (threads or 1)
        by_gpus = int(node.get("GPU", 0) / gpus + 1e-6) if gpus else by_cores  # 1e-6: against rounding down
        return min(by_cores, by_gpus)

    jobs_and_cores = [(count_jobs(node), int(node.get("CPU", 0))) for node in nodes if count_jobs(node)]
    if not jobs_and_cores:
        needed = f"{gpus:g} GPU and " if gpus else ""
        available = "; ".join(f"{n.get('GPU', 0):g} GPUs and {n.get('CPU', 0):g} cores" for n in nodes)
        raise UserError(f"a job needs {needed}{threads or 1} CPU threads, which no machine of Ray's has: {available}")
    at_once = min(sum(n for n, _ in jobs_and_cores), jobs, processes or jobs)
    if threads is None:  # the jobs that Ray may put on a node share its cores
        threads = min(cores // min(n, at_once) for n, cores in jobs_and_cores)
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
    import psutil  # isort: skip - after Ray, which puts its own copy on the path

    handler, earlier_children = signal.getsignal(signal.SIGTERM), psutil.Process().children(recursive=True)
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
        ray_processes = [p for p in psutil.Process().children(recursive=True) if p not in earlier_children]
        ray.shutdown()
        _, still_alive = psutil.wait_procs(ray_processes, timeout=2.0)
        for process in still_alive:  # a worker that has not noticed yet that Ray has shut down
            process.kill()
