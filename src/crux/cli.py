"""The command line: Hydra composes and checks the configuration; heavy libraries come in once it is known to be good.

A user's mistake is a ValueError below, one line on the screen and exit code 2; Ctrl-C is 130.
"""

import errno
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crux import schema
from crux.checks import check, check_model
from crux.mistakes import explain, known_keys, no_such_key
from crux.schema import CHECKOUT, HERE, ROOT, Config, Strategy
from crux.training import follower


def fail(message: str, *, code: int) -> NoReturn:
    """One line on standard error, then out."""
    print(f"crux: {follower.name()}{message}", file=sys.stderr)
    sys.exit(code)


failures: list[str] = []
"""Users' mistakes, one a failed job: Hydra would print more than a line about each."""

named_sweep: list[Config] = []
"""The jobs of a sweep that has a name: it ends with its tables."""

IN_A_SWEEP = (
    "trainer=ddp in a sweep: the processes of the other devices would run the whole sweep again; give each job one device "
    "(hydra/launcher=gpus), or start the runs one by one"
)

DISK_ERRORS = (errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR)
"""Errors of the machine's disk, told in one line."""


def raised_here(error: ValueError) -> bool:
    """Whether crux itself raised it: a user's mistake. A library's ValueError is our bug and keeps its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename).is_relative_to(HERE)


def job(cfg: DictConfig) -> None:
    """One job: the configuration is resolved and checked, then run."""
    hydra_config = HydraConfig.get()
    overrides = cast(list[str], OmegaConf.to_container(hydra_config.overrides.task, resolve=False))  # may refer to keys
    where = f"{' '.join(overrides)}: " if hydra_config.mode == RunMode.MULTIRUN else ""
    try:
        added = [o.partition("=")[0].lstrip("+") for o in overrides if o.startswith("+")]
        if unknown := [key for key in added if key not in known_keys() and not (ROOT / "conf" / key).is_dir()]:
            raise ValueError(no_such_key(unknown[0]))
        config = OmegaConf.to_object(cfg)
        assert isinstance(config, Config)
        if hydra_config.mode == RunMode.MULTIRUN:
            config.resume = False  # a sweep's jobs go on by themselves
            if config.trainer.strategy is Strategy.ddp:
                if IN_A_SWEEP not in failures:
                    failures.append(IN_A_SWEEP)
                return
        if follower.run_folder() is not None:
            config.trainer.progress = False
        check(config, overrides)
        check_model(config)
        if hydra_config.mode == RunMode.MULTIRUN and config.sweep_name != "adhoc":
            named_sweep.append(config)
        folder = Path(hydra_config.runtime.output_dir) if hydra_config.mode == RunMode.MULTIRUN else None

        from crux.run import run

        run(config, folder=folder)
    except OmegaConfBaseException as error:  # some of them are ValueErrors too
        failures.append(where + explain(error))
    except ValueError as error:
        if not raised_here(error):
            raise
        failures.append(where + " ".join(str(error).split()))
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        failures.append(where + f"{error.filename or cfg.output_dir}: {error.strerror}")


def main() -> None:
    """The entry point of `python src/main.py` and of the console script `crux`."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors on instead of printing them
    os.environ["CRUX_ROOT"] = str(ROOT)
    os.environ.setdefault("CRUX_OUTPUTS", str((CHECKOUT if ROOT == CHECKOUT else Path.cwd()) / "outputs"))
    if dashed := [a for a in sys.argv[1:] if a.startswith("--") and a[2:].partition("=")[0] in known_keys()]:
        fail(f"{dashed[0]}: keys have no dashes, write {dashed[0][2:].partition('=')[0]}=…", code=2)
    sys.argv[1:] = sorted(
        sys.argv[1:], key=lambda word: word not in ("-m", "--multirun")
    )  # anywhere, as people write it
    failures.clear()
    named_sweep.clear()
    schema.register()
    entry = hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")(job)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if follower.run_folder() is not None:
        follower.follow()
    try:
        entry()
        if named_sweep and not failures:
            from crux.compare import compare

            try:
                compare(named_sweep[0])
            except ValueError as error:
                fail(str(error), code=2)
    except (HydraException, OmegaConfBaseException) as error:
        fail(explain(error), code=2)
    except OSError as error:  # Hydra makes the folder before it calls the job
        if error.errno not in (*DISK_ERRORS, errno.EEXIST, errno.ENOENT):
            raise
        fail(f"output_dir: {error.filename} cannot be made ({error.strerror})", code=2)
    except KeyboardInterrupt:
        fail("interrupted", code=130)
    if failures:
        fail("\ncrux: ".join(failures), code=2)
