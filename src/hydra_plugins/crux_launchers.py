"""Hydra's launchers for crux: `gpus` and `cpus` (Ray), `slurm` (submitit). Hydra looks for plugins only in this package.

They replace hydra-ray-launcher and hydra-submitit-launcher, with which a whole sweep fails if the process of one job dies; the options have
the same keys as there. Hydra imports every plugin on every start, so nothing heavy is imported here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import MISSING, DictConfig, OmegaConf

if TYPE_CHECKING:
    from crux.launch.work import Work


@dataclass
class RayOptions:
    """The arguments of `ray.init` and `ray.remote`."""

    init: dict[str, Any] = field(default_factory=dict)
    """Arguments of `ray.init`; those that are null are left to Ray."""
    remote: dict[str, Any] = field(default_factory=dict)
    """Arguments of `ray.remote` for each job; crux chooses the number of CPU threads if it is null."""


@dataclass
class RayConf:
    """Schema of `hydra.launcher` for `hydra/launcher=gpus` and `cpus`.

    The launcher reads only `processes` and `ray`. The YAML files in conf/hydra/launcher fill the field `ray` below, by interpolation, with
    the values of `gpus_per_job`, `threads` and `address`.
    """

    _target_: str = "hydra_plugins.crux_launchers.RayLauncher"
    processes: int | None = None
    """Maximum number of jobs at once; null: as many as the GPUs or cores allow."""
    gpus_per_job: float = MISSING
    """Number of GPUs per job, from 0 to 1; 0.5: two jobs share a GPU."""
    threads: int | None = None
    """CPU threads per job; null: an equal share of the cores."""
    address: str | None = None
    """Address of a Ray cluster, host:port or auto; null: start one on this machine for the sweep."""
    ray: RayOptions = field(default_factory=RayOptions)


@dataclass
class SlurmConf:
    """Schema of `hydra.launcher` for `hydra/launcher=slurm`; keys without a description are options of sbatch with the same name."""

    _target_: str = "hydra_plugins.crux_launchers.SlurmLauncher"
    submitit_folder: str = MISSING
    """Folder for the scripts, pickled jobs and logs of submitit."""
    name: str = MISSING
    """Name of the jobs in the queue."""
    timeout_min: int = MISSING
    """Minutes until a job is stopped and queued again, to be resumed."""
    max_num_timeout: int = MISSING
    """Maximum number of times that a job is queued again."""
    signal_delay_s: int = MISSING
    """A job receives the signal to stop this many seconds before its time limit."""
    gpus_per_node: int | None = None
    """Number of GPUs per job; a job uses at most one of them."""
    cpus_per_task: int | None = None
    """Cores and threads per job."""
    mem_gb: float | None = None
    """Memory per job, in GB."""
    array_parallelism: int = MISSING
    """Maximum number of jobs at once."""
    partition: str | None = None
    qos: str | None = None
    account: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    gres: str | None = None
    comment: str | None = None
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    """Any other options of sbatch."""
    setup: list[str] = field(default_factory=list)
    """Shell lines to run before each job, for example to load modules."""


for name, schema in {"ray_schema": RayConf, "slurm_schema": SlurmConf}.items():
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=schema, provider="crux")


class _CruxLauncher(Launcher):
    """A launcher that composes the configurations of the jobs in the launching process and runs the jobs in other processes."""

    def __init__(self, **options: Any) -> None:
        self.options: dict[str, Any] = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in options.items()
        }
        self.config: DictConfig | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def compose_jobs(self, job_overrides: Sequence[Sequence[str]], *, first_number: int) -> "list[Work]":
        """Return a job per command line, numbered from `first_number` on."""
        from crux.launch.work import Work

        assert self.config is not None
        load = self.hydra_context.config_loader.load_sweep_config
        return [
            Work(self.task_function, self.hydra_context, load(self.config, list(overrides)), number=number)
            for number, overrides in enumerate(job_overrides, start=first_number)
        ]


class RayLauncher(_CruxLauncher):
    """A launcher that runs each job in a process of its own, as many at once as the GPUs or cores allow."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from crux.launch.refusals import check_ray

        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        # before any job is composed, check that Ray is installed, that the options fit this machine, and that a given cluster answers
        check_ray(processes=self.options["processes"], **self.options["ray"])

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from crux.launch.on_ray import run_on_ray

        jobs = self.compose_jobs(job_overrides, first_number=initial_job_idx)
        return run_on_ray(jobs, processes=self.options["processes"], **self.options["ray"])


class SlurmLauncher(_CruxLauncher):
    """A launcher that submits the jobs of a sweep to SLURM as the tasks of one job array."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from crux.launch.refusals import check_slurm

        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        check_slurm()  # check before any job is composed that submitit and SLURM's commands are installed

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from crux.launch.on_slurm import run_on_slurm

        jobs = self.compose_jobs(job_overrides, first_number=initial_job_idx)
        # the configuration of a job knows the sweep's name, also if it was derived from the command line
        folder = str(jobs[0].config.hydra.launcher.submitit_folder)
        options = {key: value for key, value in self.options.items() if key != "submitit_folder"}
        return run_on_slurm(jobs, submitit_folder=folder, **options)
