"""The keys of a composed job, as the help pages show them: value, meaning and allowed values."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crux.config.columns import LEFT_WIDTH, format_columns
from crux.config.descriptions import describe_type, read_field_descriptions

SET_BY_OPTIONS = ("sae.name", "loss.name")
"""Keys that users do not set, because the choice of an option does. The same holds for a `_target_` that must have a value."""


@dataclass
class Key:
    """A key of a composed job."""

    name: str
    value: str
    description: str
    kind: str
    """The allowed values, in words."""


def list_job_keys(section: DictConfig, prefix: str = "") -> Iterator[Key]:
    """Yield the keys of a section, those of its own dataclass before those of the dataclasses that it is derived from."""
    kind = OmegaConf.get_type(section)
    assert kind is not None
    hints, hints_with_bounds = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    descriptions = read_field_descriptions(kind)
    order = list(dict.fromkeys(name for base in kind.__mro__ for name in getattr(base, "__annotations__", {})))
    for name in sorted((field.name for field in fields(kind)), key=order.index):
        hint = hints[name]
        if isinstance(hint, type) and is_dataclass(hint):
            if not OmegaConf.is_missing(section, name):
                yield from list_job_keys(section[name], f"{prefix}{name}.")
        elif prefix + name not in SET_BY_OPTIONS and (name != "_target_" or hint is not str):
            value = _format_value(section, name)
            yield Key(prefix + name, value, descriptions.get(name, ""), describe_type(hints_with_bounds[name]))


def _format_value(section: DictConfig, name: str) -> str:
    """Return a value as it is written on a command line; `???` if it must be given."""
    if OmegaConf.is_missing(section, name):
        return "???"
    try:
        return format_plain_value(section[name])
    except OmegaConfBaseException:  # it refers to a value that must be given
        values = OmegaConf.to_container(section, resolve=False)
        assert isinstance(values, dict)
        return str(values[name])


def format_plain_value(value: Any) -> str:
    """Return a value as it is written on a command line."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case Enum():
            return value.name
        case ListConfig():
            return f"[{','.join(map(format_plain_value, value))}]"
        case DictConfig():
            return f"{{{','.join(f'{key}:{format_plain_value(item)}' for key, item in value.items())}}}"
        case _:
            return str(value)


def format_key(key: Key) -> str:
    """Return a key with its value on the left, and what it means and may be on the right."""
    must = "; must be given" if key.value == "???" else ""
    return format_columns(
        f"  {key.name}={key.value}", f"{key.description} [{key.kind}{must}]".strip(), column=LEFT_WIDTH
    )
