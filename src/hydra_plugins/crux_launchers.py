"""Hydra's launchers for crux: `gpus` and `cpus` (Ray), `slurm` (submitit). Hydra looks for plugins in this package alone.

Why not hydra-ray-launcher and hydra-submitit-launcher: one job whose process dies takes their whole sweep down. Their keys are kept.
Hydra imports every plugin on every start, so nothing heavy is imported here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import MISSING, DictConfig, OmegaConf


@dataclass
class RayOptions:
    """Options passed to Ray."""

    init: dict[str, Any] = field(default_factory=dict)
    """Arguments of `ray.init`; null leaves it to Ray."""
    remote: dict[str, Any] = field(default_factory=dict)
    """Arguments of `ray.remote` for each job; null leaves it to crux."""


@dataclass
class RayConf:
    """`hydra.launcher` of gpus and cpus."""

    _target_: str = "hydra_plugins.crux_launchers.RayLauncher"
    processes: int | None = None
    """Most jobs at once; as many as there are GPUs or cores for, where not given."""
    gpus_per_job: float = MISSING
    """0: none; 0.5: two jobs share a GPU. Short for ray.remote.num_gpus."""
    threads: int | None = None
    """CPU threads a job; its share of the cores, where not given. Short for ray.remote.num_cpus."""
    address: str | None = None
    """`auto` or host:port of a Ray cluster; one is started on this machine, for the sweep, where not given. Short for ray.init.address."""
    ray: RayOptions = field(default_factory=RayOptions)


@dataclass
class SlurmConf:
    """`hydra.launcher` of slurm; words without a line here are sbatch's."""

    _target_: str = "hydra_plugins.crux_launchers.SlurmLauncher"
    submitit_folder: str = MISSING
    """submitit's own files."""
    name: str = MISSING
    timeout_min: int = MISSING
    """Minutes until a job is stopped, and queued again to go on."""
    max_num_timeout: int = MISSING
    """How often a job is queued again."""
    signal_delay_s: int = MISSING
    """So many seconds before its end a job gets a signal."""
    gpus_per_node: int | None = None
    """A job's GPUs; a job uses one."""
    cpus_per_task: int | None = None
    """A job's cores, and its threads."""
    mem_gb: float | None = None
    array_parallelism: int = MISSING
    """Most jobs at once."""
    partition: str | None = None
    qos: str | None = None
    account: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    gres: str | None = None
    comment: str | None = None
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    """Any other option of sbatch."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the job: modules to load, an environment to enter."""


for name, schema in {"ray_schema": RayConf, "slurm_schema": SlurmConf}.items():
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=schema, provider="crux")


class _CruxLauncher(Launcher):
    """Composes the jobs here, where the sweep was started, and hands them to processes elsewhere."""

    def __init__(self, **options: Any) -> None:
        self.options: dict[str, Any] = {
            k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in options.items()
        }
        self.config: DictConfig | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def jobs(self, job_overrides: Sequence[Sequence[str]], first: int) -> "list[Any]":
        from crux.launch.work import Work

        assert self.config is not None
        load = self.hydra_context.config_loader.load_sweep_config
        return [
            Work(self.task_function, self.hydra_context, load(self.config, list(overrides)), number=i)
            for i, overrides in enumerate(job_overrides, start=first)
        ]


class RayLauncher(_CruxLauncher):
    """A process for each job, as many at once as there are GPUs or cores."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from crux.launch.refusals import check_ray

        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        check_ray(processes=self.options["processes"], **self.options["ray"])

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from crux.launch.on_ray import run_on_ray

        return run_on_ray(
            self.jobs(job_overrides, initial_job_idx), processes=self.options["processes"], **self.options["ray"]
        )


class SlurmLauncher(_CruxLauncher):
    """A job of the cluster for each job, in one array."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from crux.launch.refusals import check_slurm

        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        check_slurm()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from crux.launch.on_slurm import run_on_slurm

        return run_on_slurm(self.jobs(job_overrides, initial_job_idx), **self.options)
