"""Compose the configuration of a job from overrides, for the command line and for Python, and check it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir, version
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crux.config.bounds import check_bounds
from crux.config.command_line import check_overrides
from crux.config.errors import UserError
from crux.config.messages import explain_composition_error, explain_unknown_key
from crux.config.no_effect import check_has_effect
from crux.config.paths import ROOT
from crux.config.registry import known_keys, register
from crux.config.schema import Job


class ComposedJob(NamedTuple):
    """A job whose configuration has been composed and checked."""

    job: Job
    launcher: Mapping[str, Any]
    """Hydra's section `hydra.launcher`."""


def compose_job(overrides: Sequence[str], *, grid_advice: str) -> ComposedJob:
    """Return the job that the overrides compose. A Hydra that the caller has initialised stays as it is.

    Args:
        grid_advice: what to do instead, if the overrides describe a grid of jobs.

    Raises:
        UserError: if the overrides do not compose, a key does not pass its checks, or there are several jobs.
    """
    register()
    try:
        for override in overrides:
            if override.startswith("-") or OverridesParser.create().parse_override(override).is_sweep_override():
                raise UserError(f"{override}: {grid_advice}")
        check_overrides(overrides)
        with _separate_hydra():
            config = compose("config", overrides=list(overrides), return_hydra_config=True)
        OmegaConf.set_struct(config, False)
        hydra_config = config.pop("hydra")
        if hydra_config.mode is RunMode.MULTIRUN:
            raise UserError(f"sweeps=…: {grid_advice}")
        return ComposedJob(build_job(config, overrides), hydra_config.launcher)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain_composition_error(error, overrides=overrides)) from error


@contextmanager
def _separate_hydra() -> Iterator[None]:
    """Initialise Hydra for this block; afterwards restore the Hydra that the caller may have initialised."""
    instance, base = GlobalHydra.instance(), version.VersionBase.instance()
    hydra_before, instance.hydra = instance.hydra, None
    base_before = base.version_base
    try:
        with initialize_config_dir(str(ROOT / "conf"), job_name="crux", version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = hydra_before
        base.version_base = base_before


def build_job(config: DictConfig, overrides: Sequence[str]) -> Job:
    """Return the job that a composed configuration describes, with its keys checked.

    Raises:
        UserError: for the first key that is unknown, out of bounds, or contradicts another.
    """
    added = [override.partition("=")[0].lstrip("+") for override in overrides if override.startswith("+")]
    if unknown := [key for key in added if not _may_be_added(key)]:
        raise UserError(explain_unknown_key(unknown[0], overrides=overrides))
    job = OmegaConf.to_object(config)
    assert isinstance(job, Job)
    check_bounds(job, "")
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    if job.callbacks and not job.trains:
        check_has_effect(given, "callbacks", "callbacks.", because="this job trains nothing with Lightning")
    job.check(given)
    return job


def _may_be_added(key: str) -> bool:
    """Return True if `+key=…` is allowed: for a key of crux, a callback of the user, and a group of conf/."""
    return key in known_keys() or key.startswith("callbacks.") or (ROOT / "conf" / key).is_dir()
