"""The command line: Hydra composes the configuration, crux checks it, and only then heavy libraries are imported.

An error that the user can fix is printed as one line, with exit code 2: a UserError, an error of Hydra's or OmegaConf's, or an error of
the disk, such as no space. Any other exception keeps its traceback, with exit code 1. Ctrl-C exits with 130.
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

from crux import __version__
from crux.config.command_line import check_overrides, find_repeated
from crux.config.compose import build_job
from crux.config.errors import UserError
from crux.config.flags import split_flags
from crux.config.messages import DISK_ERRORS, explain_composition_error, explain_user_error
from crux.config.no_effect import check_has_effect
from crux.config.paths import ROOT
from crux.config.registry import register, register_resolvers
from crux.config.streams import protect_streams
from crux.launch.refusals import check_no_launcher_without_sweep
from crux.launch.release_memory import release_memory
from crux.runs.command_line import job_overrides
from crux.runs.lock import LockedError
from crux.runs.run_folder import RunFolder
from crux.runs.start import start_job
from crux.sae.options import ReportJob


def fail(message: str, *, code: int) -> NoReturn:
    """Print one line on standard error and exit."""
    print(f"crux: {message}", file=sys.stderr)
    sys.exit(code)


def job(cfg: DictConfig) -> None:
    """Run the job of a configuration that Hydra has composed.

    If a single job fails, the process ends. The job of a sweep never raises; if it fails, it leaves FAILED in its folder, because it
    may run in another process or on another machine, so that only files can report its outcome.
    """
    # for launchers other than crux's own, which may run a sweep's job in a process that has called neither `main` nor `register`
    register_resolvers()
    hydra_config = HydraConfig.get()
    overrides = cast(
        list[str], OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
    )  # a value such as ${layer} stays as it is
    if hydra_config.mode != RunMode.MULTIRUN:
        try:
            check_no_launcher_without_sweep(hydra_config.launcher)
            if OmegaConf.get_type(cfg) is not ReportJob:
                given = {override.partition("=")[0] for override in overrides}
                check_has_effect(given, "retry_failed", "report_l0", "report_geometry", because="this is no sweep")
            start(cfg, overrides, folder=None)
        except Exception as error:
            if (line := explain_user_error(error, overrides=overrides)) is None:
                raise
            fail(line, code=2)
        return
    folder = RunFolder(Path(hydra_config.runtime.output_dir))
    try:
        start(cfg, overrides, folder=folder.path)
    except LockedError as error:  # the process that runs the job will report its outcome
        print(f"crux: {error}", file=sys.stderr)
    except Exception as error:
        line = explain_user_error(error, overrides=overrides)
        if folder.done:  # a run that is done stays done, whatever fails after it
            print(f"crux: {folder.path.name} is done, but: {line or traceback.format_exc()}", file=sys.stderr)
        else:
            reason = line or f"{type(error).__name__}: {' '.join(str(error).split())}"
            folder.fail(reason, details="" if line else traceback.format_exc())
            print(f"crux: {folder.path.name}: {reason}", file=sys.stderr)
    release_memory()  # the next job of the sweep may run in this process


def start(cfg: DictConfig, overrides: list[str], *, folder: Path | None) -> None:
    """Check the configuration, then run it; `folder` is the run folder that a sweep has assigned to the job."""
    with job_overrides(overrides):
        job = build_job(cfg, overrides)
    if (line := find_repeated(overrides)) is not None:
        print(f"crux: {line}", file=sys.stderr)
    start_job(job, folder=folder)


def show_help(words: list[str]) -> None:
    """Print crux's help page. Hydra's own takes seconds and lists options that are not for users."""
    from crux.config.help import format_help

    try:
        print(format_help(words))
    except (HydraException, OmegaConfBaseException, UserError) as error:
        fail(explain_user_error(error, overrides=words) or "", code=2)


def main() -> None:
    """Run the command line: the entry point of `python src/main.py` and of the console script `crux`."""
    protect_streams()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra passes its errors on instead of printing them
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))  # Hydra wants them first
    register()
    words = sys.argv[1:]
    try:
        # reject words such as --layer=6, for which Hydra would print its own usage
        flags, overrides = split_flags(words)
        if flags & {"--help", "-h"}:
            show_help([word for word in words if word not in ("--help", "-h")])
            return
        if "--version" in flags:  # Hydra would print its own version
            print(f"crux {__version__}")
            return
        if not flags & {"--shell-completion", "--hydra-help"}:
            check_overrides(overrides)
    except UserError as error:
        fail(str(error), code=2)
    entry = hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")(job)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        entry()
    except (HydraException, OmegaConfBaseException) as error:
        fail(explain_composition_error(error, overrides=overrides), code=2)
    except OSError as error:  # Hydra creates the output folder before it calls `job`
        if error.errno not in (*DISK_ERRORS, errno.EEXIST, errno.ENOENT):
            raise
        fail(f"output_dir: {error.filename} cannot be made ({error.strerror})", code=2)
    except UserError as error:  # about a sweep as a whole; `job` reports the errors of its jobs
        fail(" ".join(str(error).split()), code=2)
    except KeyboardInterrupt as stop:
        fail("; ".join(["interrupted", *getattr(stop, "__notes__", ())]), code=130)
    except SystemExit as stop:
        if stop.code == 128 + signal.SIGTERM:
            fail("; ".join(["stopped by SIGTERM", *getattr(stop, "__notes__", ())]), code=128 + signal.SIGTERM)
        raise
