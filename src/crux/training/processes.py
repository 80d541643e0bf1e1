"""Several devices on one machine: a process each. The first one starts the others, watches them, and leaves none behind.

The training goes to them as one pickled call, so that they load and print nothing of their own. Who they are stands in torchrun's
environment variables, which Lightning's TorchElasticEnvironment reads: under torchrun itself, nothing is started here.
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

POLL = 0.1
"""Seconds between looks at the other processes."""
GRACE = 20.0
"""Seconds that the first process has to notice by itself that another one is lost; waiting for a GPU, it never would."""
LEAVE = 60.0
"""Seconds that the other processes have to end once the training is done."""


class LostProcessError(UserError):
    """Another process of the run has failed; what it printed stands above."""


@contextmanager
def shared_by(
    devices: int, *, training: Callable[[], object], abandon: Callable[[], None]
) -> Iterator[DDPStrategy | str]:
    """Yields Lightning's strategy for a training that so many devices share, with the other processes running.

    Args:
        training: what the other processes call; pickled, with the module and data that it is to train.
        abandon: called before the first process is ended because it hangs, waiting for one that is lost.

    Raises:
        LostProcessError: if another process fails.
    """
    if devices == 1:
        yield "auto"
        return
    # DDP would send the first process's buffers to the others before each step: crux.training.ranks keeps them equal
    known = inspect.signature(DistributedDataParallel).parameters
    sending = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # since torch 2.13
    options: dict[str, Any] = {sending: False, "gradient_as_bucket_view": True}
    threads = torch.get_num_threads()
    try:
        with nullcontext() if "RANK" in os.environ else _other_processes(devices, training, abandon):
            yield DDPStrategy(cluster_environment=TorchElasticEnvironment(), **options)
            dist.destroy_process_group()  # the first process evaluates by itself
    finally:
        torch.set_num_threads(threads)  # Lightning has given each process its share of the cores


@contextmanager
def _other_processes(devices: int, training: Callable[[], object], abandon: Callable[[], None]) -> Iterator[None]:
    """Starts the other processes, and ends them if they do not end by themselves."""
    context = multiprocessing.get_context("spawn")
    places = torchrun_variables(devices)
    ready, is_ready = context.Pipe(duplex=False)
    others = Others()
    over = threading.Event()
    try:
        with tempfile.TemporaryDirectory() as folder:
            handed = Path(folder, "training.pt")
            torch.save(training, handed)
            with _ignored(signal.SIGINT, signal.SIGTERM):  # inherited: these signals are for the first process alone
                for place in places[1:]:
                    arguments = (place, handed, is_ready)
                    process = context.Process(target=_run_training, args=arguments, daemon=True)
                    process.start()
                    others.processes.append(process)
            for _ in others.processes:
                while not ready.poll(POLL):
                    others.check(None)
                ready.recv()
        threading.Thread(target=_watch, args=(others, over, abandon), daemon=True).start()
        with _environment(places[0]):
            yield
        over.set()
        for process in others.processes:
            process.join(LEAVE)
    except RuntimeError as error:  # perhaps of a connection whose other end is lost
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            others.check(error)
            time.sleep(POLL)
        raise
    finally:
        over.set()
        others.kill()


def torchrun_variables(devices: int) -> list[dict[str, str]]:
    """Return the environment variables that torchrun would give to each process."""
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), "WORLD_SIZE": str(devices)}
    return [group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(devices)]


class Others:
    """The processes of the further devices, and the message about the first one that failed."""

    def __init__(self) -> None:
        self.processes: list[BaseProcess] = []
        self.message = ""

    def lost(self) -> bool:
        """Return whether one has failed; the message stays, also after the others have been killed."""
        for rank, process in enumerate(self.processes, start=1):
            if not self.message and (code := process.exitcode):
                how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
                self.message = (
                    f"process {rank} of processes 0 to {len(self.processes)} ended with {how}, and with it the run; what it "
                    "printed stands above, the last checkpoint is kept"
                )
        return bool(self.message)

    def check(self, cause: Exception | None) -> None:
        if self.lost():
            raise LostProcessError(self.message) from cause

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _watch(others: Others, over: threading.Event, abandon: Callable[[], None]) -> None:
    """Ends the run if another process is lost and the first one only waits for it."""
    while not over.wait(POLL):
        if others.lost():
            others.kill()
            if not over.wait(GRACE):
                print(f"crux: {others.message}", file=sys.stderr, flush=True)
                abandon()
                os._exit(2)
            return


def _run_training(environment: dict[str, str], handed: Path, is_ready: Connection) -> None:
    """Runs the training in another process, which ends with the first one, however that ends."""
    threading.Thread(target=_end_with_first_process, daemon=True).start()
    os.environ |= environment
    training = torch.load(handed, map_location={"cuda:0": f"cuda:{environment['RANK']}"}, weights_only=False)
    is_ready.send(None)
    try:
        training()
    except UserError:
        sys.exit(2)  # such as a loss that is not finite: every process finds it at once, the first one reports it


def _end_with_first_process() -> None:
    if (first := multiprocessing.parent_process()) is not None:
        first.join()
        os._exit(1)


class OwnSignals(L.Callback):
    """Keeps this process's handler of SIGTERM: Lightning's would first wait for the other processes, which may be lost."""

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if signal.getsignal(signal.SIGTERM) is not self.handler:
            signal.signal(signal.SIGTERM, self.handler)


@contextmanager
def _ignored(*numbers: signal.Signals) -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    os.environ |= more
    try:
        yield
    finally:
        for key in more:
            del os.environ[key]


def _reopened(array: np.memmap) -> tuple[Any, ...]:  # pyright: ignore[reportMissingTypeArgument]
    """Pickles a memory-mapped array, or a slice of one, as its place in its file: the processes share the text in memory."""
    whole = array
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    offset = whole.offset + array.ctypes.data - whole.ctypes.data
    return np.memmap, (array.filename, array.dtype, "r", offset, array.shape)


copyreg.pickle(np.memmap, _reopened)
