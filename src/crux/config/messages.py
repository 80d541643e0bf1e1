"""A mistake in the command line, told in one line: what was wrong, the nearest valid choice, what is allowed."""

import difflib
import errno
import re
from dataclasses import fields

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from crux.config.errors import UserError
from crux.config.schema import ROOT, Config

DISK_ERRORS = (errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR)
"""Errors of the machine's disk, told in one line."""


def mistake(error: BaseException) -> str | None:
    """Return a problem that the user can fix as one line, or None if the error is a bug and needs its traceback."""
    match error:
        case OmegaConfBaseException() | HydraException():  # some of them are ValueErrors too
            return explain(error)
        case UserError():
            return " ".join(str(error).split())
        case OSError() if error.errno in DISK_ERRORS:
            return f"{error.filename or 'the disk'}: {error.strerror}"
        case _:
            return None


def nearest(word: str, choices: list[str]) -> str:
    """`did you mean …?` with the closest choice, where one is close."""
    close = difflib.get_close_matches(word, choices, n=1)
    return f"did you mean {close[0]}? " if close else ""


def options(group: str) -> list[str]:
    """Every option of a group, those in its subfolders too."""
    folder = ROOT / "sweeps" if group == "sweeps" else ROOT / "conf" / group
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))


def no_such_key(key: str) -> str:
    """What is wrong with a key, the nearest one, and those beside it."""
    keys = known_keys() if not key.startswith("hydra.launcher.") else launcher_keys()
    prefix = key.rpartition(".")[0]
    beside = [k for k in keys if k.rpartition(".")[0] == prefix] or [k for k in keys if "." not in k]
    return f"{key}: no such key; {nearest(key, keys)}allowed there are {', '.join(sorted(beside))}"


PHRASES = {
    r"Value '(.*)' of type '.*' could not be converted to Integer": "={}: must be a whole number",
    r"Value '(.*)' of type '.*' could not be converted to Float": "={}: must be a number",
    r"Value '(.*)' is not a valid bool.*": "={}: must be true or false",
    r"Invalid value '(.*)', expected one of \[(.*)\]": "={}: allowed are {}",
    r"field '.*' is not Optional": "=null: must have a value",
    r"Invalid value assigned: \w+ is not a ListConfig, list or tuple\.": ": must be a list, such as [1,2]",
}
"""OmegaConf's messages about a value, and ours."""


def explain(error: HydraException | OmegaConfBaseException) -> str:
    """Hydra's and OmegaConf's composition errors in one line, with the nearest valid choice."""
    text = str(error)
    if match := re.search(r"(?:Could not (?:find|load)|In '[^']*': Could not find) '([^']+)'", text):
        depth = 2 if match[1].startswith("hydra/") else 1  # hydra/launcher=gpus
        group, option = "/".join(match[1].split("/")[:depth]), "/".join(match[1].split("/")[depth:])
        allowed = options(group)
        return f"{group}={option}: no such option; {nearest(option, allowed)}allowed are {', '.join(allowed) or 'none'}"
    if match := re.search(r"Could not override '([^']+)'", text):
        return no_such_key(match[1])
    if match := re.match(r"Error parsing override '(.*)'", text):
        return f"{match[1]}: cannot be read; write key=value, with quotes where the shell or a comma needs them"
    if match := re.match(r"Ambiguous value for argument '(.*)'", text):
        return f"{match[1]}: several values are a grid, say -m for it; one list is written [a,b]"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    key = getattr(error, "full_key", None) or next((x[10:] for x in lines if x.startswith("full_key: ")), "")
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    message = str(cause).splitlines()[0]
    key = key or next((x.strip()[10:] for x in str(cause).splitlines() if x.strip().startswith("full_key: ")), "")
    for pattern, words in PHRASES.items():
        if match := re.fullmatch(pattern, message):
            return key + words.format(*match.groups())
    return f"{key}: {message}" if key else message


def launcher_keys() -> list[str]:
    """Every dotted key of the launchers of a sweep."""
    from hydra_plugins.crux_launchers import RayConf, SlurmConf

    return sorted({f"hydra.launcher.{field.name}" for conf in (RayConf, SlurmConf) for field in fields(conf)})


def known_keys() -> list[str]:
    """Every dotted key of the configuration."""

    def walk(node: type, prefix: str) -> list[str]:
        keys: list[str] = []
        for name, kind in node.__annotations__.items():
            keys.append(prefix + name)
            inner = (
                kind
                if isinstance(kind, type)
                else next((k for k in getattr(kind, "__args__", ()) if k is not type(None)), None)
            )
            if isinstance(inner, type) and hasattr(inner, "__dataclass_fields__"):
                keys += walk(inner, f"{prefix}{name}.")
        return keys

    return walk(Config, "")
