"""A run's further processes: what the first one tells them when it starts them, and how they keep to themselves. Torch-free.

With `trainer=ddp` the first process runs the command line again, once a further device (`crux.training.processes`). A follower makes no
run folder, draws and prints nothing; it ends with the first process, which alone hears Ctrl-C.
"""

import os
import signal
import threading
import time
from pathlib import Path

FOLDER, READY = "CRUX_RUN_FOLDER", "CRUX_READY"
"""Environment variables: the run folder that the first process made; a folder in which each follower says that it is ready."""


def run_folder() -> Path | None:
    """The first process's run folder; None in the first process itself."""
    return Path(os.environ[FOLDER]) if FOLDER in os.environ else None


def rank() -> int:
    """Which process of the run this is: 0 for the first, or the only, one."""
    return int(os.environ["LOCAL_RANK"]) if FOLDER in os.environ else 0


def name() -> str:
    """For messages: nothing in the first process."""
    return f"process {rank()}: " if rank() else ""


def ready() -> None:
    """Tells the first process that this one has come to training."""
    if READY in os.environ:
        (Path(os.environ[READY]) / str(rank())).touch()


def follow() -> None:
    """Leaves Ctrl-C and SIGTERM to the first process, and ends once that is gone, killed perhaps."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    first = os.getppid()

    def end_with_it() -> None:
        while os.getppid() == first:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()


def launched_elsewhere() -> bool:
    """Whether torchrun, or srun with several tasks, started this process beside others."""
    several_tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1
    return FOLDER not in os.environ and (several_tasks or "LOCAL_RANK" in os.environ)
