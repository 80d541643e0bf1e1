"""One job of a sweep that runs in another process, here or on another machine that shares the file system."""

import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from hydra.version import setbase
from omegaconf import DictConfig, OmegaConf, open_dict

from crux.config.paths import PACKAGE
from crux.config.progress import show_progress
from crux.config.registry import register
from crux.config.streams import protect_streams
from crux.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

VARIABLES_PASSED_ON = (
    "CRUX_OUTPUTS", "CRUX_CACHE", "HYDRA_FULL_ERROR", "MLFLOW_TRACKING_URI", "MLFLOW_DISABLE_TELEMETRY",
    "HF_HOME", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM",
)  # fmt: skip
"""Environment variables that a job takes over from the launching process; passwords and tokens are not among them."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Environment variables with the number of threads of a process."""


def environment_to_pass_on() -> dict[str, str]:
    """Return the environment variables of a job's process, which must find crux before it unpickles anything."""
    path = [str(PACKAGE.parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {name: os.environ[name] for name in VARIABLES_PASSED_ON if name in os.environ} | {
        "PYTHONPATH": os.pathsep.join(path)
    }


class Work:
    """A job of a sweep as a callable object. It is pickled, and called in the process of the job.

    The job's output goes to `output.log` in its folder. The composed configuration still refers to the environment and to crux's
    resolvers, so that a call sets up both before it runs the job.
    """

    def __init__(self, task: TaskFunction, context: HydraContext, config: DictConfig, *, number: int) -> None:
        with open_dict(config.hydra.job):
            config.hydra.job.id = config.hydra.job.num = number
        self.task, self.context, self.config = task, context, config
        self.environment, self.cwd = environment_to_pass_on(), os.getcwd()
        self.threads: int | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def folder(self) -> Path:
        """The run folder of the job."""
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(self.config)  # the resolver ${hydra:…} looks there
        try:
            return Path(self.config.hydra.sweep.dir, self.config.hydra.sweep.subdir)
        finally:
            HydraConfig.instance().cfg = before

    def __call__(self, place: str | None = None) -> None:
        """Run the job.

        Args:
            place: name of this machine in the log; None: its host name.
        """
        place = place or socket.gethostname()
        os.environ.update(self.environment)
        if self.threads is not None:
            os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(self.threads)))
        os.chdir(self.cwd)
        setbase("1.3")
        setup_globals()
        register()
        self.folder.mkdir(parents=True, exist_ok=True)
        _redirect_output(self.folder / "output.log")
        protect_streams()
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        print(f"process {os.getpid()} on {place}, threads {self.threads}, CUDA_VISIBLE_DEVICES={gpus}", flush=True)
        # as in `main`: a stopped job ends KILLED in MLflow and keeps its checkpoint
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        with show_progress(False):  # the output is a log
            returned = run_job(
                task_function=self.task,
                config=self.config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
                hydra_context=self.context,
            )
        sys.stdout.flush()
        sys.stderr.flush()
        _ = returned.return_value  # raises what the job raised

    def checkpoint(self) -> "DelayedSubmission":
        """Return what submitit should queue after it has stopped the job: the same job, which resumes from its own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def describe_end(self, error: Exception | None) -> str:
        """Return how the job ended, in one line.

        Args:
            error: the exception with which the job's process ended; None if it ended normally.
        """
        folder = RunFolder(self.folder)
        if folder.failed:
            return f"failed: {folder.failure_reason()}"
        if error is not None:
            return f"its process ended: {' '.join(str(error).split())[:300]}"
        return "done" if folder.done else "ended without a result"

    def to_job_return(self, error: Exception | None) -> JobReturn:
        """Return how the job ended, in the form that Hydra expects of a launcher; `error` as in `describe_end`."""
        status = JobStatus.COMPLETED if error is None else JobStatus.FAILED
        overrides = OmegaConf.to_container(self.config.hydra.overrides.task, resolve=False)
        assert isinstance(overrides, list)
        returned = JobReturn(overrides=overrides, working_dir=str(self.folder), status=status)
        returned.return_value = error
        return returned


def _redirect_output(path: Path) -> None:
    """Append all further output of this process to a file, including that of C libraries."""
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("a", encoding="utf-8") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
