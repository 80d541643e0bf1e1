"""The registry of options: their dataclasses, including those of installed plug-ins, are stored in Hydra's ConfigStore.

An option's dataclass is stored as `<group>/<option>_options`, which the option's YAML names first in its defaults list. A plug-in is an
installed package with an entry point in the group `crux.plugins`: a module whose `OPTIONS` has the form of `OPTIONS` below. Its YAMLs, if
it has any, are in the folder conf/ next to that module, which is put on Hydra's search path.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

from omegaconf import OmegaConf

from crux.config.folder_name import shorten_name
from crux.config.paths import ROOT, default_outputs

Options = Mapping[str, Mapping[str, type]]
"""Dataclasses by group and option. Those of the group `job` are whole configurations."""

OWNERS = tuple(f"crux.{name}.options" for name in ("config", "sae", "toy", "pretraining", "llc", "degeneracy"))
"""Torch-free modules, each with OPTIONS."""

SUFFIX = "_options"


@cache
def plugins() -> tuple[ModuleType, ...]:
    """Import the modules of the installed plug-ins, in the order of their names."""
    return tuple(point.load() for point in sorted(entry_points(group="crux.plugins"), key=lambda point: point.name))


def plugin_folders() -> list[Path]:
    """Return the conf/ folders of the installed plug-ins."""
    places = [Path(module.__file__ or "").parent / "conf" for module in plugins()]
    return [place for place in places if place.is_dir()]


@cache
def options_by_group() -> dict[str, dict[str, type]]:
    """Return every options dataclass by group and option."""
    found: dict[str, dict[str, type]] = {}
    for module in (*map(import_module, OWNERS), *plugins()):
        for group, options in module.OPTIONS.items():
            found.setdefault(group, {}).update(options)
    return found


def list_keys(options: type) -> Iterator[str]:
    """Yield the dotted keys of an options dataclass, without the name of its section."""
    hints = get_type_hints(options)
    for field in fields(options):
        yield field.name
        if isinstance(inner := hints[field.name], type) and is_dataclass(inner):
            yield from (f"{field.name}.{key}" for key in list_keys(inner))


@cache
def dataclasses_by_name() -> dict[str, type]:
    """Return every options dataclass by its name, including those of the sections within a configuration."""

    def within(kind: type) -> Iterator[type]:
        yield kind
        for inner in get_type_hints(kind).values():
            if isinstance(inner, type) and is_dataclass(inner):
                yield from within(inner)

    return {
        inner.__name__: inner
        for group in options_by_group().values()
        for kind in group.values()
        for inner in within(kind)
    }


@cache
def known_keys() -> dict[str, list[str]]:
    """Return every key of every option, with the options that have it, such as `sae=topk` (none for keys of a job itself)."""
    found: dict[str, list[str]] = {}
    for group, options in options_by_group().items():
        for option, kind in options.items():
            prefix = "" if group == "job" else f"{group}."
            for key in list_keys(kind):
                found.setdefault(prefix + key, []).append("" if group == "job" else f"{group}={option}")
    return found


def log_space(first: float, last: float, n: int) -> list[float]:
    """Return n numbers from first to last in equal ratios."""
    return [float(f"{first * (last / first) ** (i / (n - 1)):.6g}") for i in range(n)]


def register_resolvers() -> None:
    """Register the arithmetic that the YAML files use, in every process that resolves a configuration."""
    OmegaConf.register_new_resolver("times", lambda a, b: a * b, replace=True)
    OmegaConf.register_new_resolver("when", lambda a, b, then, other: then if a == b else other, replace=True)
    OmegaConf.register_new_resolver("shortened", shorten_name, replace=True)
    OmegaConf.register_new_resolver("log_space", log_space, replace=True)
    OmegaConf.register_new_resolver("crux_root", lambda: str(ROOT), replace=True)
    OmegaConf.register_new_resolver("default_outputs", default_outputs, replace=True)


def register() -> None:
    """Store every options dataclass where Hydra's defaults lists find it."""
    from hydra.core.config_store import ConfigStore

    register_resolvers()
    store = ConfigStore.instance()
    for group, options in options_by_group().items():
        for option, kind in options.items():
            store.store(
                group=group,
                name=f"{option}{SUFFIX}",
                node=kind,
                package="_global_" if group == "job" else None,
                provider="crux",
            )
