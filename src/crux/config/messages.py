"""A mistake in the command line, told in one line: what was wrong, the nearest valid choice, what is allowed."""

import difflib
import errno
import re

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from crux.config.errors import UserError
from crux.config.paths import ROOT
from crux.config.registry import dataclasses, keys_of, known_keys, plugin_folders, registered

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
    """Return every option of a group, those in its subfolders and of plug-ins too; a name that begins with _ is no option."""
    folders = (
        [ROOT / "sweeps"] if group == "sweeps" else [place / group for place in (ROOT / "conf", *plugin_folders())]
    )
    found = {p.relative_to(f).with_suffix("").as_posix() for f in folders for p in f.rglob("*.yaml")}
    return sorted(name for name in found if not name.rpartition("/")[2].startswith("_"))


def no_such_key(key: str, *, kind: str | None = None) -> str:
    """Say what is wrong with a key, who has it, the nearest one, and those next to it.

    Args:
        kind: name of the dataclass that does not have it; None if that is not known.
    """
    if key in RENAMED:
        return f"{key}: is called {RENAMED[key]} now"
    section = key.rpartition(".")[0]
    everywhere = launcher_keys() if key.startswith("hydra.launcher.") else list(known_keys())
    there = [k for k in everywhere if k.rpartition(".")[0] == section] or [k for k in everywhere if "." not in k]
    if (own := dataclasses().get(kind or "")) is not None:
        prefix = f"{section}." if section else ""
        there = [prefix + k for k in keys_of(own) if "." not in k and k != "_target_"]
        everywhere = there + [k for k in everywhere if "." in k]
        if key in known_keys():
            owners = list(dict.fromkeys(o for o in known_keys()[key] if _can_be_chosen(o.partition("=")[0])))
            have = f"; {', '.join(owners)} {'have' if len(owners) > 1 else 'has'} it" if owners else ""
            where = _described(own.__name__, section)
            return f"{key}: {where} has no such key{have}; its own are {', '.join(sorted(there)) or 'none'}"
    return f"{key}: no such key; {nearest(key, everywhere)}allowed there are {', '.join(sorted(there))}"


RENAMED = {"gradient.target": "sae.gradient_target", "task": "job"}
"""Keys of earlier versions, and what they are called now."""


def _can_be_chosen(group: str) -> bool:
    """Return whether users choose an option of this group by its name; some groups are an experiment's own."""
    return bool(group) and any((place / group).is_dir() for place in (ROOT / "conf", *plugin_folders()))


def _described(kind: str, section: str) -> str:
    """Return how a user calls an options dataclass: `sae=topk`, or the job that the experiment chose."""
    for group, of_group in registered().items():
        for option, found in of_group.items():
            if found.__name__ == kind:
                if group == "job" or not _can_be_chosen(group):
                    return "this experiment"
                return f"{group}={option}"
    return "this experiment" if kind not in dataclasses() or section else "the configuration"


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
    if match := re.search(r"Could not override '([^']+)'. No match in the defaults list", text):
        return f"{match[1]}: has no meaning for this experiment, which does not read that group"
    if match := re.search(r"Could not override '([^']+)'", text):
        cause = error.__cause__
        kind = getattr(getattr(cause, "object_type", None), "__name__", None)
        key = match[1] if match[1] in RENAMED else getattr(cause, "full_key", None) or match[1]
        return no_such_key(key, kind=kind)
    if match := re.search(r"In '?([^\s:']+)'?: .*\n?Key '([^']+)' not in '(\w+)'", text):
        option = match[1].replace("/", "=", 1)
        return f"{option}: does not fit this experiment, which has no key {match[2]} there"
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
    """Return every dotted key of the launchers of a sweep."""
    store = ConfigStore.instance()
    nodes = [store.load(f"hydra/launcher/{name}_schema.yaml").node for name in ("ray", "slurm")]
    return sorted({f"hydra.launcher.{key}" for node in nodes for key in node})
