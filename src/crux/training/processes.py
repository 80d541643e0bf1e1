"""Train on several devices of one machine, with one process per device. The first process starts, watches and ends the others.

The others receive the training as one pickled call, so that they load and print nothing themselves. Each process finds its rank in
torchrun's environment variables, which Lightning's TorchElasticEnvironment reads. Under torchrun itself, crux starts no processes.
"""

import copyreg
import inspect
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from crux.config.errors import UserError

POLL_INTERVAL = 0.1
"""Seconds between checks of the other processes."""
MAX_TIME_TO_NOTICE = 20.0
"""Seconds that the first process has to notice by itself that another one is lost; while it waits for a GPU, it never would."""
MAX_TIME_TO_END = 60.0
"""Seconds in which the other processes must end once the training is done."""


class LostProcessError(UserError):
    """Another process of the run has failed; its own output precedes this message."""


@contextmanager
def start_processes(
    devices: int, *, training: Callable[[], object], on_abandon: Callable[[], None]
) -> Iterator[DDPStrategy | str]:
    """Start the processes of the further devices, and yield Lightning's strategy for the training in all of them.

    Args:
        training: the call that the other processes make; it is pickled, with the module and the data.
        on_abandon: called before the first process ends itself because it hangs, waiting for a process that is lost.

    Raises:
        LostProcessError: if another process fails.
    """
    if devices == 1:
        yield "auto"
        return
    # DDP would send the first process's buffers to the others before each step; crux.training.ranks keeps them equal.
    # torch 2.13 has given the argument that switches this off another name
    parameters = inspect.signature(DistributedDataParallel).parameters
    sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    options: dict[str, Any] = {sync_buffers: False, "gradient_as_bucket_view": True}
    threads = torch.get_num_threads()
    try:
        with nullcontext() if "RANK" in os.environ else _other_processes(devices, training, on_abandon):
            yield DDPStrategy(cluster_environment=TorchElasticEnvironment(), **options)
            dist.destroy_process_group()  # the first process evaluates by itself
    finally:
        torch.set_num_threads(threads)  # Lightning has given each process its share of the cores


@contextmanager
def _other_processes(devices: int, training: Callable[[], object], on_abandon: Callable[[], None]) -> Iterator[None]:
    """Start the other processes, and end them if they do not end by themselves."""
    context = multiprocessing.get_context("spawn")
    environments = torchrun_variables(devices)
    ready, is_ready = context.Pipe(duplex=False)
    others = OtherProcesses()
    over = threading.Event()
    try:
        with tempfile.TemporaryDirectory() as folder:
            pickled = Path(folder, "training.pt")
            torch.save(training, pickled)
            with _ignore_signals(
                signal.SIGINT, signal.SIGTERM
            ):  # inherited: only the first process reacts to these signals
                for environment in environments[1:]:
                    arguments = (environment, pickled, is_ready)
                    process = context.Process(target=_run_training, args=arguments, daemon=True)
                    process.start()
                    others.processes.append(process)
            for _ in others.processes:
                while not ready.poll(POLL_INTERVAL):
                    others.check(None)
                ready.recv()
        threading.Thread(target=_watch, args=(others, over, on_abandon), daemon=True).start()
        with _set_environment(environments[0]):
            yield
        over.set()
        for process in others.processes:
            process.join(MAX_TIME_TO_END)
    except RuntimeError as error:  # torch raises it if it cannot reach a process; a lost process is then reported
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            others.check(error)
            time.sleep(POLL_INTERVAL)
        raise
    finally:
        over.set()
        others.kill()


def torchrun_variables(devices: int) -> list[dict[str, str]]:
    """Return the environment variables that torchrun would give to each process."""
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), "WORLD_SIZE": str(devices)}
    return [group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(devices)]


class OtherProcesses:
    """The processes of the further devices, and the message about the first one that failed."""

    def __init__(self) -> None:
        self.processes: list[BaseProcess] = []
        self.message = ""

    def any_failed(self) -> bool:
        """Return True if a process has failed; the message about the first one is kept when the others are killed."""
        for rank, process in enumerate(self.processes, start=1):
            if not self.message and (code := process.exitcode):
                how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
                self.message = (
                    f"process {rank} of processes 0 to {len(self.processes)} ended with {how}, and with it the run; its "
                    "output is printed above, the last checkpoint is kept"
                )
        return bool(self.message)

    def check(self, cause: Exception | None) -> None:
        """Raise LostProcessError if a process has failed."""
        if self.any_failed():
            raise LostProcessError(self.message) from cause

    def kill(self) -> None:
        """Kill all processes and wait for their end."""
        for process in self.processes:
            process.kill()
            process.join()


def _watch(others: OtherProcesses, over: threading.Event, on_abandon: Callable[[], None]) -> None:
    """End the run if another process has failed and the first one only waits for it."""
    while not over.wait(POLL_INTERVAL):
        if others.any_failed():
            others.kill()
            if not over.wait(MAX_TIME_TO_NOTICE):
                print(f"crux: {others.message}", file=sys.stderr, flush=True)
                on_abandon()
                os._exit(2)
            return


def _run_training(environment: dict[str, str], pickled: Path, is_ready: Connection) -> None:
    """Run the training in one of the other processes, which ends when the first process ends, for whatever reason."""
    threading.Thread(target=_end_with_first_process, daemon=True).start()
    os.environ |= environment
    training = torch.load(pickled, map_location={"cuda:0": f"cuda:{environment['RANK']}"}, weights_only=False)
    is_ready.send(None)
    try:
        training()
    except UserError:
        sys.exit(2)  # such as a loss that is not finite: every process finds it at once, the first one reports it


def _end_with_first_process() -> None:
    """Wait for the end of the first process, then end this one."""
    if (first := multiprocessing.parent_process()) is not None:
        first.join()
        os._exit(1)


class KeepSigtermHandler(L.Callback):
    """A callback that keeps this process's handler of SIGTERM; that of Lightning would first wait for processes that may be lost."""

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if signal.getsignal(signal.SIGTERM) is not self.handler:
            signal.signal(signal.SIGTERM, self.handler)


@contextmanager
def _ignore_signals(*numbers: signal.Signals) -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _set_environment(variables: dict[str, str]) -> Iterator[None]:
    os.environ |= variables
    try:
        yield
    finally:
        for key in variables:
            del os.environ[key]


def _reduce_memmap(array: np.memmap) -> tuple[Any, ...]:  # pyright: ignore[reportMissingTypeArgument]
    """Pickle a memory-mapped array, or a slice of one, as a position in its file, so that the processes share the text in memory."""
    whole = array
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    offset = whole.offset + array.ctypes.data - whole.ctypes.data
    return np.memmap, (array.filename, array.dtype, "r", offset, array.shape)


copyreg.pickle(np.memmap, _reduce_memmap)  # used by every pickling in this process from now on
