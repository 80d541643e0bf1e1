"""DDP on one machine: a process a device, started by the first one, watched, and ended with it.

Lightning's own launcher kills the whole run without a word where a process is lost, and leaves the others behind where the first one fails.
"""

import inspect
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch.nn.parallel import DistributedDataParallel

from crux.config.errors import UserError
from crux.training import follower

POLL = 0.1
"""Seconds between looks at the followers."""
GRACE = 20.0
"""Seconds that the first process has to notice by itself that another one is lost; waiting for a GPU, it never would."""
LEAVE = 60.0
"""Seconds that followers have to leave once the training is done."""


class LostProcessError(UserError):
    """Another process of the run has failed; what it said stands before."""


class Processes(DDPStrategy):
    """Lightning's DDP; the processes are crux's to start, also under SLURM.

    Args:
        run_folder: of the first process, for the others.
        abandoned: called before the run is ended from outside of the training, which waits for a process that is lost.
    """

    def __init__(self, *, run_folder: Path, abandoned: Callable[[], None]) -> None:
        # before a step DDP would send the first process's buffers to the others: crux.training.ranks keeps them equal
        known = inspect.signature(DistributedDataParallel).parameters
        sending = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # since torch 2.13
        options: dict[str, Any] = {sending: False, "gradient_as_bucket_view": True}
        super().__init__(cluster_environment=LightningEnvironment(), **options)
        self.run_folder, self.abandoned = run_folder, abandoned

    def configure_ddp(self) -> None:
        assert self.model is not None
        for buffer in self.model.buffers():  # DDP itself sends the first process's parameters to the others
            dist.broadcast(buffer, 0)
        super().configure_ddp()

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = Launcher(
            self.cluster_environment, self.num_processes, run_folder=self.run_folder, abandoned=self.abandoned
        )


class Launcher(_SubprocessScriptLauncher):
    """Starts the followers by running the command line again, and leaves none behind."""

    def __init__(
        self, environment: Any, num_processes: int, *, run_folder: Path, abandoned: Callable[[], None]
    ) -> None:
        super().__init__(environment, num_processes, num_nodes=1)
        self.run_folder, self.abandoned = run_folder, abandoned
        self.lost: str | None = None

    def launch(self, function: Callable[..., Any], *args: Any, trainer: L.Trainer | None = None, **kwargs: Any) -> Any:
        assert trainer is not None
        _leave_signals_alone(trainer)
        first = not self.cluster_environment.creates_processes_externally
        threads = torch.get_num_threads()
        try:
            with self._followers() if first else _following():
                _set_num_threads_if_needed(self.num_processes)
                result = function(*args, **kwargs)
                dist.destroy_process_group()  # from here on each is alone
            return result
        finally:
            torch.set_num_threads(threads)

    @contextmanager
    def _followers(self) -> Iterator[None]:
        """Around the training in the first process.

        Raises:
            LostProcessError: where a follower failed.
        """
        over = threading.Event()
        try:
            with tempfile.TemporaryDirectory() as ready:
                with _environment({follower.FOLDER: str(self.run_folder), follower.READY: ready}):
                    self._call_children_scripts()
                while len(os.listdir(ready)) < len(self.procs):
                    if self._one_is_lost():
                        raise LostProcessError(self.lost)
                    time.sleep(POLL)
            threading.Thread(target=self._watch, args=(over,), daemon=True).start()
            yield
            over.set()
            for process in self.procs:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(LEAVE)
        except RuntimeError as error:  # a connection that broke; or our own
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                if self._one_is_lost():
                    raise LostProcessError(self.lost) from error
                time.sleep(POLL)
            raise
        finally:
            over.set()
            for process in self.procs:
                process.kill()
                process.wait()

    def _one_is_lost(self) -> bool:
        for rank, process in enumerate(self.procs, start=1):
            if self.lost is None and (code := process.poll()):
                how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
                self.lost = (
                    f"process {rank} of processes 0 to {len(self.procs)} ended with {how}, and with it the run; what it said "
                    "stands above, the last checkpoint is kept"
                )
        return self.lost is not None

    def _watch(self, over: threading.Event) -> None:
        """Ends the run where a follower is lost and the training only waits for it."""
        while not over.wait(POLL):
            if self._one_is_lost():
                for process in self.procs:
                    process.kill()
                if not over.wait(GRACE):
                    print(f"crux: {self.lost}", file=sys.stderr, flush=True)
                    self.abandoned()
                    os._exit(1)
                return


@contextmanager
def _following() -> Iterator[None]:
    """Around the training in another process."""
    follower.ready()
    yield


@contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    """For the processes started within."""
    os.environ |= more
    try:
        yield
    finally:
        for key in more:
            del os.environ[key]


def _leave_signals_alone(trainer: L.Trainer) -> None:
    """Lightning asks the other processes about SIGTERM before every batch, which waits for the device, and in the handler itself, where

    they may be dead. The command line's handlers do, and the followers end with the first process.
    """

    def nothing() -> None:
        return

    trainer._signal_connector.register_signal_handlers = nothing
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = nothing
