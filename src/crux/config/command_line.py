"""Check the overrides of a command line one by one, before Hydra composes them.

Hydra's grammar accepts more than a job can use: groups without an option, keys of Hydra itself, removed keys, classes to import. What is
rejected here needs no composition, and the message names the key that was typed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from crux.config.catalogue import (
    Choice,
    common_groups,
    find_annotation,
    has_key,
    list_groups,
    option_files,
    read_choice,
    read_experiment,
)
from crux.config.errors import UserError
from crux.config.messages import explain_unknown_key, explain_unknown_option, explain_unread_group, list_launcher_keys
from crux.config.quoting import explain_unreadable_override, quote_override
from crux.config.registry import known_keys, options_by_group
from crux.config.targets import check_target

SET_BY_EXPERIMENT = ("toy", "llc", "degeneracy", "interaction_basis")
"""Sections with a key `experiment`, which the choice of an experiment sets."""

HYDRA_SETTINGS = ("hydra.searchpath", "hydra.sweeper.max_batch_size", "hydra.sweeper.grids")
"""Keys of Hydra that a command line may set, besides hydra.launcher.… and hydra.sweeper.params.…"""

EXTENSION_POINTS = ("callbacks.<name>._target_", "model._target_")
"""Keys by which a command line names code to import; docs/guide/extending.md explains them."""


class Setting(NamedTuple):
    """One value of a key, as it was typed."""

    key: str
    value: Any
    text: str
    """The value as Hydra writes it."""
    is_added: bool
    """True for `+key=value` and `++key=value`."""


def check_overrides(words: Sequence[str]) -> None:
    """Check each override of a command line.

    Raises:
        UserError: for the first that cannot be meant, in one line that names its key.
    """
    overrides = [_parse(word) for word in words]
    for override in overrides:
        if override.key_or_group == "sweeps" and override.is_sweep_override():
            raise UserError(f"{override.input_line}: start them one after the other, {_one_by_one(override)}")
    choices = list(_list_choices(words, overrides))
    for override in overrides:
        for setting in _list_settings(override):
            for choice in choices:
                _check_setting(setting, choice, words)


def _one_by_one(sweeps: Override) -> str:
    return ", then ".join(f"sweeps={name}" for name in list_sweep_values(sweeps)[:4])


def find_repeated(words: Sequence[str]) -> str | None:
    """Return a sentence about the first key that has two different values, of which the last one counts; None if there is none."""
    given: dict[str, str] = {}
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        if given.setdefault(key, value) != value:
            last = next(w for w in reversed(words) if w.lstrip("+").partition("=")[0] == key)
            return f"{key} is given more than once; the last one counts, {last}"
    return None


def _parse(word: str) -> Override:
    if (line := explain_unreadable_override(word)) is not None:
        raise UserError(line)
    override = OverridesParser.create().parse_override(word)
    key = override.key_or_group
    if not key:
        raise UserError(f"{word}: cannot be read; write key=value")
    if override.is_delete():
        raise UserError(f"{word}: a key cannot be removed; leave it out, or give it another value: {key}=…")
    if override.package is not None:
        raise UserError(f"{key}@{override.package}: an option cannot be put elsewhere, write {key}=…")
    return override


def _list_choices(words: Sequence[str], overrides: Sequence[Override]) -> Iterator[Choice]:
    """Yield what the jobs of a command line choose: one choice, or one for each of several experiments."""
    experiments = [o for o in overrides if o.key_or_group == "experiment" and o.is_sweep_override()]
    if not experiments:
        yield read_choice(words)
        return
    others = [word for word in words if word.lstrip("+").partition("=")[0] != "experiment"]
    for _, text in _list_values(experiments[-1]):
        yield read_choice([*others, f"experiment={text}"])


def list_sweep_values(override: Override) -> list[str]:
    """Return the values that a sweep gives to a key, as they are written on a command line.

    Raises:
        UserError: if it has none, or they cannot be listed.
    """
    key, line = override.key_or_group, override.input_line
    if not override.is_discrete_sweep():
        raise UserError(f"{line}: an interval has no values to try; list some, or use range(…)")
    if override.value_type is not None and override.value_type.name == "GLOB_CHOICE_SWEEP":
        if key not in list_groups():
            raise UserError(f"{line}: glob(…) chooses options of a group, and {key} is none; list the values")
        values = override.value().filter(list(option_files(key)))  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        if not values:
            raise UserError(f"{line}: chooses none of {', '.join(option_files(key))}")
        return values
    values: list[str] = []
    try:
        for value in override.sweep_string_iterator():
            values.append(value)
            if len(values) > MAX_VALUES:
                raise UserError(f"{line}: has more than {MAX_VALUES:,} values")
    except (ValueError, ZeroDivisionError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{line}: has no values to try ({error})") from error
    if not values:
        raise UserError(f"{line}: has no values to try")
    return values


MAX_VALUES = 10_000
"""Largest number of values of a key in a grid."""
MAX_CHECKED = 100
"""Number of values of a key that are checked here; all are checked when the jobs are composed."""


def _list_values(override: Override) -> Iterator[tuple[Any, str]]:
    """Yield each value of an override with its text: one, or all those of a sweep."""
    if not override.is_sweep_override():
        yield override.value(), (override.input_line or "").partition("=")[2].strip()
        return
    for text in list_sweep_values(override)[:MAX_CHECKED]:
        parsed = OverridesParser.create().parse_override(f"key={text}")
        yield parsed.value(), text


def _list_settings(override: Override) -> Iterator[Setting]:
    """Yield the keys and values of an override; a mapping `loss={kl:1}` sets the keys in it."""
    is_added = override.is_add() or override.is_force_add()
    for value, text in _list_values(override):
        if isinstance(value, Mapping) and override.key_or_group not in ("hydra.sweeper.grids",):
            if not value and override.key_or_group != "callbacks":
                raise UserError(f"{override.input_line}: sets nothing")
            for key, inner in _flatten(value, override.key_or_group):
                yield Setting(key, inner, str(inner), is_added)
        else:
            yield Setting(override.key_or_group, value, text, is_added)


def _flatten(value: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flatten(inner, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", inner


def _check_setting(setting: Setting, choice: Choice, words: Sequence[str]) -> None:
    key = setting.key
    section, _, leaf = key.rpartition(".")
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        _check_hydra_setting(setting)
    elif leaf == "_target_":
        _check_target(setting, words)
    elif key in list_groups() or key in options_by_group():
        _check_option(setting, choice)
    elif key.startswith("callbacks."):
        name = key.split(".")[1]
        if key.count(".") == 1 or (setting.is_added and not _names_class(name, words)):
            raise UserError(f"{key}: a callback needs its class: +callbacks.{name}._target_=my_package.MyCallback")
        if not setting.is_added and not _chooses_callbacks(words):
            raise UserError(
                f"{key}: there is no such callback; write +{key}=… and name its class by +callbacks.<name>._target_=…"
            )
    elif leaf == "experiment" and section in SET_BY_EXPERIMENT:
        raise UserError(f"{key}={setting.text}: cannot be set; choose an experiment with experiment={section}/…")
    elif section and _is_value(find_annotation(choice, section)):
        raise UserError(f"{key}: no such key; {section} is a value and has no keys of its own")
    elif not has_key(choice, key) and (setting.is_added or _is_known_to_be_missing(key, choice)):
        raise UserError(explain_unknown_key(key, overrides=words))
    elif setting.is_added and f"+{key}=" in {word.partition("=")[0] + "=" for word in words}:
        raise UserError(f"+{key}={setting.text}: write {key}={setting.text}, without +")
    else:
        _check_value(setting, find_annotation(choice, key))


def _chooses_callbacks(words: Sequence[str]) -> bool:
    """Return True if the command line chooses options of the group `callbacks`."""
    return "callbacks" in {word.partition("=")[0] for word in words}


def _names_class(callback: str, words: Sequence[str]) -> bool:
    """Return True if the command line names the class of a callback, or chooses options of the group `callbacks`."""
    return any(
        f"callbacks.{callback}._target_=" in word or word.startswith("callbacks=") or "_target_:" in word
        for word in words
    )


def _is_value(annotation: Any) -> bool:
    """Return True for the annotation of a key that is no section."""
    return annotation is not None and not is_dataclass(annotation)


def _is_known_to_be_missing(key: str, choice: Choice) -> bool:
    """Return True if crux has a key, but this job has not even its section.

    For any other key the composition tells, because options may come from a folder of the user's (hydra.searchpath).
    """
    return key in known_keys() and not has_key(choice, key.partition(".")[0])


def _check_hydra_setting(setting: Setting) -> None:
    key = setting.key
    if key == "hydra/launcher":
        _check_option_name(setting)
    elif key.startswith("hydra.launcher."):
        known = list_launcher_keys()
        free = ("hydra.launcher.ray.init.", "hydra.launcher.ray.remote.", "hydra.launcher.additional_parameters.")
        if key.endswith("._target_"):
            raise UserError(f"{key}: cannot be set; choose a launcher by hydra/launcher=…")
        if key not in known and not key.startswith(free):
            raise UserError(explain_unknown_key(key, overrides=[]))
    elif key == "hydra.searchpath":
        for place in setting.value if isinstance(setting.value, list) else [setting.value]:
            if (
                not isinstance(place, str)
                or ("://" not in place and not Path(place).is_dir())
                or (place.startswith("file://") and not Path(place.removeprefix("file://")).is_dir())
            ):
                raise UserError(f"{key}: {place} is no folder; write {key}=[file:///my/conf]")
    elif key == "hydra.sweeper.max_batch_size":
        if setting.value is not None and not (isinstance(setting.value, int) and setting.value >= 1):
            raise UserError(f"{key}={setting.text}: must be 1 or more")
    elif key not in HYDRA_SETTINGS and not key.startswith("hydra.sweeper.params."):
        raise UserError(
            f"{key}: crux sets Hydra's own keys; allowed are hydra/launcher, hydra.launcher.…, hydra.sweeper.params.… and "
            f"{', '.join(HYDRA_SETTINGS)}"
        )


def _check_target(setting: Setting, words: Sequence[str]) -> None:
    """Check that a command line names code only at a documented place, and something that can be meant."""
    key = setting.key
    if key == "model._target_":
        if setting.value is not None:
            check_target(str(setting.value), key=key, what="a function load(model, *, device, dtype) of your own")
    elif key.startswith("callbacks.") and key.count(".") == 2:
        check_target(str(setting.value), key=key, what="a class derived from lightning.Callback")
        if not setting.is_added and not _chooses_callbacks(words):
            raise UserError(f"{key}={setting.text}: a callback of your own is added by +{key}={setting.text}")
    else:
        group = key.partition(".")[0]
        advice = f"choose {group}=…, or add an option of your own" if group in list_groups() else "only "
        advice += "" if group in list_groups() else " and ".join(EXTENSION_POINTS) + " name code"
        raise UserError(f"{key}: cannot be set on the command line; {advice} (docs/guide/extending.md)")


def _check_option(setting: Setting, choice: Choice) -> None:
    """Check the option of a group."""
    group = setting.key
    if group == "job":
        experiments = [name for name in option_files("experiment") if read_experiment(name).job == setting.value]
        raise UserError(
            f"job={setting.text}: cannot be set; choose an experiment, experiment={experiments[0] if experiments else '…'}"
        )
    if group not in list_groups() and group in choice.options:
        raise UserError(f"{group}={setting.text}: is chosen by the experiment; its keys are {group}.…")
    if group not in choice.options and group not in common_groups() and group != "hydra/launcher":
        raise UserError(explain_unread_group(group))
    _check_option_name(setting)


def _check_option_name(setting: Setting) -> None:
    group, value = setting.key, setting.value
    if value is None and common_groups().get(group) == "null":
        raise UserError(f"{group}=null: leave it out to choose none")
    names = value if value and isinstance(value, list) and group == "callbacks" else [value]
    for name in names:
        if not isinstance(name, str):
            raise UserError(explain_unknown_option(group, setting.text))
    if setting.is_added:
        raise UserError(f"+{group}={setting.text}: write {group}={setting.text}, without +")


def _check_value(setting: Setting, annotation: Any) -> None:
    """Check what OmegaConf would convert silently: a number to true or false, a number to a text in another spelling."""
    kinds = {annotation, *get_args(annotation)}
    key, value, text = setting.key, setting.value, setting.text
    if bool in kinds and isinstance(value, int | float) and not isinstance(value, bool):
        raise UserError(f"{key}={text}: must be true or false")
    if float in kinds and isinstance(value, bool):
        raise UserError(f"{key}={text}: must be a number")
    if (
        isinstance(value, list)
        and any(isinstance(item, list | Mapping) for item in value)
        and (str(annotation).count("list[") == 1)
    ):  # the string is that of the annotation, whatever bounds and options it has
        raise UserError(f"{key}={text}: must be a list of single values")
    if str in kinds and isinstance(value, bool | int | float) and str(value) != text:
        raise UserError(f"{key}: {text} is read as a number; for this text, write {quote_override(key, text)}")
    if str in kinds and isinstance(value, str) and not value.strip():
        null = f"; {key}=null is the default" if type(None) in kinds else ""
        raise UserError(f"{key}={text}: must not be empty{null}")
