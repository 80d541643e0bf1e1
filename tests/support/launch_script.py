"""crux's command line with jobs that only say where they run: seconds, not minutes, for what launchers promise.

`seed=7` dies without a word, `seed=8` raises.
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


def say(cfg: DictConfig) -> None:
    began = time.time()
    if cfg.seed == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.seed == 8:
        raise RuntimeError("as it was told")
    time.sleep(1.0)
    here = {key: os.environ.get(key) for key in KEYS} | {
        "pid": os.getpid(),
        "nice": os.nice(0),
        "sparsity": cfg.sparsity,
    }
    said = here | {"began": began, "ended": time.time(), "cwd": os.getcwd()}
    (Path(HydraConfig.get().runtime.output_dir) / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    crux.cli.job = say
    crux.cli.main()
