"""The command line of crux with jobs that only record where and when they run, so that launchers can be tested quickly.

The job with `seed=7` kills itself; the one with `seed=8` raises an error.
"""

import json
import os
import signal
import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import crux.cli

KEYS = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "CRUX_OUTPUTS", "CRUX_CACHE", "MLFLOW_TRACKING_URI")


def record_process(cfg: DictConfig) -> None:
    """Write the times, the environment and the process of a job to `process.json` in its folder."""
    began = time.time()
    if cfg.seed == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.seed == 8:
        raise RuntimeError("seed 8 always fails")
    time.sleep(1.0)
    process = {key: os.environ.get(key) for key in KEYS} | {
        "pid": os.getpid(),
        "nice": os.nice(0),
        "sparsity": cfg.sparsity,
    }
    record = process | {"began": began, "ended": time.time(), "cwd": os.getcwd()}
    (Path(HydraConfig.get().runtime.output_dir) / "process.json").write_text(json.dumps(record))


if __name__ == "__main__":
    crux.cli.job = record_process
    crux.cli.main()
