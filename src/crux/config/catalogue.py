"""The options and keys that a command line can choose, read from conf/, sweeps/ and the folders of plug-ins without composing them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from crux.config.paths import ROOT
from crux.config.registry import SUFFIX, list_keys, options_by_group, plugin_folders

MAIN_JOB = "train"
"""The option of the group `job` that conf/config.yaml chooses."""


def conf_folders() -> list[Path]:
    """Return crux's conf/ and those of the installed plug-ins."""
    return [ROOT / "conf", *plugin_folders()]


def _find_conf_file(name: str) -> Path:
    """Return the path of a file of crux's conf/ or of a plug-in's."""
    return next((folder / name for folder in conf_folders() if (folder / name).exists()), ROOT / "conf" / name)


@cache
def option_files(group: str) -> dict[str, Path]:
    """Return the YAML of each option of a group, by the option's name, sorted; options in subfolders have a `/` in their names.

    A file whose name begins with `_` is no option.
    """
    folders = [ROOT / "sweeps"] if group == "sweeps" else [folder / group for folder in conf_folders()]
    paths = {path.relative_to(f).with_suffix("").as_posix(): path for f in folders for path in f.rglob("*.yaml")}
    return {name: paths[name] for name in sorted(paths) if not name.rpartition("/")[2].startswith("_")}


def list_groups() -> list[str]:
    """Return the groups whose options can be chosen on a command line; those of the group `job` are chosen by experiments."""
    folders = {folder.name for place in conf_folders() for folder in place.iterdir() if folder.is_dir()}
    return sorted({*folders - {"hydra", "job"}, "hydra/launcher", "sweeps"})


@cache
def common_groups() -> dict[str, str]:
    """Return the groups that every job reads, each with its option if a command line chooses none; `null`: no option."""
    return {group: option for group, option in _read_defaults(ROOT / "conf" / "config.yaml") if option}


class Choice(NamedTuple):
    """The choices of a command line: a job, and an option for each group that this job reads."""

    job: str
    options: dict[str, str]
    """The name of the chosen option by group; if only experiments choose it, the name of its dataclass with the suffix `_options`."""


@cache
def read_experiment(experiment: str | None) -> Choice:
    """Return what an experiment chooses, or the main job if there is no experiment."""
    options: dict[str, str] = {}
    if experiment is not None and experiment in option_files("experiment"):
        options = _read_experiment_options(option_files("experiment")[experiment])
    job = options.pop("job", MAIN_JOB)
    job_options = {group: option for group, option in _read_defaults(_find_conf_file(f"job/{job}.yaml")) if option}
    return Choice(job, job_options | options)


def _read_experiment_options(path: Path) -> dict[str, str]:
    """Return the option of each group that the YAML of an experiment chooses, or an experiment from which it is derived."""
    found: dict[str, str] = {}
    for group, option in _read_defaults(path):
        if group.startswith("experiment/"):  # an experiment that this one is derived from
            found |= _read_experiment_options(_find_conf_file(f"{group}.yaml"))
        elif option:
            found[group] = option
    return found


def _read_defaults(path: Path) -> Iterator[tuple[str, str]]:
    """Yield group and option of each entry of a YAML's defaults list; an entry without an option has the option ``."""
    text = path.read_text("utf-8")
    if match := re.search(r"^defaults: \[(.*)\]", text, re.M):
        yield from ((entry.strip().removeprefix("/"), "") for entry in match[1].split(","))
    elif match := re.search(r"^defaults:\n((?:  - .*\n?)+)", text, re.M):
        for line in match[1].splitlines():
            entry = line.partition("#")[0].strip(" -").removeprefix("override ").removeprefix("/")
            group, _, option = entry.partition(":")
            yield group.strip(), option.strip()


@cache
def options_class(group: str, option: str) -> type | None:
    """Return the dataclass of an option, or None if it has none."""
    if option.endswith(SUFFIX):
        return options_by_group().get(group, {}).get(option.removesuffix(SUFFIX))
    if (path := option_files(group).get(option)) is None:
        return None
    parents = [name for name, _ in _read_defaults(path)]
    schemas = [name for name in parents if name.endswith(SUFFIX)]
    classes = (options_class(group, name) for name in [*schemas, *parents])
    return next((cls for cls in classes if cls is not None), None)


def read_choice(overrides: Sequence[str]) -> Choice:
    """Return what a command line chooses: by its experiment, and by its options of groups."""
    split = [override.lstrip("+").partition("=") for override in overrides]
    pairs = {key: value for key, _, value in split}
    choice = read_experiment(pairs.get("experiment"))
    others = {group: pairs[group] for group in choice.options if pairs.get(group, "") in option_files(group)}
    return Choice(choice.job, choice.options | others)


def has_key(choice: Choice, key: str) -> bool:
    """Return whether the job that a command line chooses has a key."""
    job = options_by_group()["job"].get(choice.job)
    section, _, rest = key.partition(".")
    if job is None or section not in (hints := get_type_hints(job)):
        return False
    kind = options_class(section, choice.options[section]) if section in choice.options else hints[section]
    return not rest or (isinstance(kind, type) and rest in _list_all_keys(kind))


def find_annotation(choice: Choice, key: str) -> Any:
    """Return the annotation of a key, with its bounds, in the job that a command line chooses; None if the job does not have it."""
    section, *rest = key.split(".")
    kind = options_by_group()["job"].get(choice.job)
    hint = get_type_hints(kind, include_extras=True).get(section) if kind is not None else None
    if rest and section in choice.options:
        hint = options_class(section, choice.options[section])
    for name in rest:
        if not (isinstance(hint, type) and is_dataclass(hint)):
            return None
        hint = get_type_hints(hint, include_extras=True).get(name)
    return hint


@cache
def _list_all_keys(kind: type) -> frozenset[str]:
    return frozenset(list_keys(kind)) if hasattr(kind, "__dataclass_fields__") else frozenset()


def find_options(key: str, choice: Choice) -> list[str]:
    """Return the options, such as `sae=topk`, that would give a job a key which it does not have."""
    section = key.partition(".")[0]
    if section not in choice.options:
        return []
    names = (name for name in option_files(section) if has_key(choice._replace(options={section: name}), key))
    return [f"{section}={name}" for name in names]


def find_experiments(key: str) -> list[str]:
    """Return the experiments, such as `experiment=toy/basic`, whose jobs have a key, those of the key's section first."""
    names = [name for name in option_files("experiment") if has_key(read_experiment(name), key)]
    return [f"experiment={name}" for name in sorted(names, key=lambda name: not name.startswith(key.partition(".")[0]))]
