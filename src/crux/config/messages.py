"""Explain errors of the command line in one line: what is wrong, the nearest valid choice, and what is allowed."""

import difflib
import errno
import re
from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from crux.config.catalogue import (
    find_experiments,
    find_options,
    has_key,
    list_groups,
    option_files,
    read_choice,
    read_experiment,
)
from crux.config.errors import UserError
from crux.config.quoting import explain_unreadable_override, quote_override
from crux.config.registry import SUFFIX, dataclasses_by_name, known_keys, list_keys, options_by_group
from crux.config.synonyms import NO_EQUIVALENT, OPTION_SYNONYMS, SYNONYMS, find_synonym

DISK_ERRORS = (errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
"""Errors of the machine's disk, which are reported in one line."""

MAX_LISTED = 12
"""Largest number of options or keys that a message lists; `--help` lists the others."""

MIN_PREFIX = 3
"""Smallest number of characters that count as the beginning of a choice."""


def explain_user_error(error: BaseException, *, overrides: Sequence[str]) -> str | None:
    """Return a problem that the user can fix as one line, or None if the error is a bug and needs its traceback.

    Args:
        overrides: the command line.
    """
    match error:
        case OmegaConfBaseException() | HydraException():  # some of them are ValueErrors too
            return explain_composition_error(error, overrides=overrides)
        case UserError():
            return " ".join(str(error).split())
        case OSError() if error.errno in DISK_ERRORS:
            return (
                f"{error.filename2 or error.filename or 'the disk'}: {error.strerror}"  # filename2: the end of a rename
            )
        case MemoryError() | RuntimeError() if _is_out_of_memory(error):
            reason = " ".join(str(error).split()).partition(". ")[0]
            return (
                f"out of memory ({reason[:200] or type(error).__name__}); lower trainer.batch, model.context or the sizes of the "
                "job, such as sae.ratio"
            )
        case _:
            return None


def _is_out_of_memory(error: BaseException) -> bool:
    """Return True for the errors by which Python, NumPy and torch report that memory is exhausted, without importing torch."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator: can't allocate memory" in text
        or "DefaultCPUAllocator: not enough memory" in text
        or "Storage size calculation overflowed" in text
        or "CUDA out of memory" in text
    )


def suggest_nearest(word: str, choices: Sequence[str]) -> str:
    """Return `did you mean …? ` with the closest choice, or nothing if no choice is close.

    A choice that begins with the word is closest; of several, the shortest.
    """
    longer = [choice for choice in choices if len(word) >= MIN_PREFIX and choice.startswith(word)]
    close = sorted(longer, key=len) or difflib.get_close_matches(word, choices, n=1)
    return f"did you mean {close[0]}? " if close else ""


def _enumerate_choices(choices: Sequence[str], *, topic: str) -> str:
    """Return the choices as a list, which is cut if it is long and then names the help page with all of them.

    Args:
        topic: what `--help` takes to show all choices.
    """
    if len(choices) <= MAX_LISTED:
        return ", ".join(choices) or "none"
    return f"{', '.join(choices[:MAX_LISTED])}, … (`{f'--help {topic}'.strip()}` lists all {len(choices)})"


def explain_unknown_key(key: str, *, overrides: Sequence[str], kind: str | None = None) -> str:
    """Return what is wrong with a key: our name for it, the options that have it, or the nearest keys.

    Args:
        overrides: the command line, which chooses a job and its options.
        kind: name of the dataclass that does not have the key; None if that is not known.
    """
    if key not in known_keys() and (line := explain_synonym(key, overrides=overrides)) is not None:
        return line
    section = key.rpartition(".")[0]
    choice = read_choice(overrides)
    if key in known_keys() and not has_key(choice, key.partition(".")[0]):
        if "." in key:
            return f"{key}: this job has no section {key.partition('.')[0]}{_describe_owners(key, overrides)}"
        kind = kind or options_by_group()["job"][choice.job].__name__
    all_keys = list_launcher_keys() if key.startswith("hydra.launcher.") else list(known_keys())
    same_section = [k for k in all_keys if k.rpartition(".")[0] == section] or [k for k in all_keys if "." not in k]
    if (options := dataclasses_by_name().get(kind or "")) is not None:  # the keys of the chosen option only
        prefix = f"{section}." if section else ""
        same_section = [prefix + k for k in list_keys(options) if "." not in k and k != "_target_"]
        all_keys = same_section + [k for k in all_keys if "." in k]
        if key in known_keys():  # of another option or job
            option = read_choice(overrides).options.get(section, SUFFIX)
            owner = (
                "this job" if option.endswith(SUFFIX) else f"{section}={option}"
            )  # only experiments choose such options
            allowed = _list_allowed_keys(section, same_section)
            return f"{key}: {owner} has no such key{_describe_owners(key, overrides)}; {allowed}"
    guess = suggest_nearest(key, same_section) or suggest_nearest(key, all_keys)
    return f"{key}: no such key; {guess}{_list_allowed_keys(section, same_section)}"


def explain_unread_group(group: str) -> str:
    """Return what is wrong with choosing an option of a group that the job does not read."""
    return f"{group}: has no meaning for this experiment, which does not read that group"


def _list_allowed_keys(section: str, keys: Sequence[str]) -> str:
    if not section:
        return f"allowed keys: {_enumerate_choices(sorted(keys), topic='')}"
    return f"allowed keys of {section}: {_enumerate_choices(sorted(keys), topic=section)}"


def _describe_owners(key: str, overrides: Sequence[str]) -> str:
    """Return `; sae=topk has it`, with everything that can be chosen to have a key, or nothing if nothing can."""
    choice, main = read_choice(overrides), read_experiment(None)
    if not (owners := find_options(key, choice)) and choice.job != main.job:
        with_option = [f"the main job with {option}" for option in find_options(key, main)[:1]]
        owners = ["the main job"] if has_key(main, key) else with_option
    owners = owners or find_experiments(key)
    if len(owners) > 8:
        owners = [*owners[:5], f"{len(owners) - 5} other experiments"]
    return f"; {', '.join(owners)} {'have' if len(owners) > 1 else 'has'} it" if owners else ""


def explain_synonym(key: str, *, overrides: Sequence[str]) -> str | None:
    """Return crux's name for a key of another library, in one line; None if we know no such name.

    Args:
        overrides: the command line, which chooses the job that should have the key.
    """
    choice = read_choice(overrides)
    name, leaf = find_synonym(key), key.lstrip("+-").rpartition(".")[2]
    if name in SYNONYMS and (ours := [k for k in SYNONYMS[name].keys if k in list_groups() or has_key(choice, k)]):
        note = f" ({SYNONYMS[name].note})" if SYNONYMS[name].note else ""
        return f"{key}: called {' or '.join(ours)} here{note}"
    same = [k for k in known_keys() if k.count(".") == 1 and k.endswith(f".{leaf}") and has_key(choice, k)]
    if len(same) == 1:
        return f"{key}: called {same[0]} here"
    if name in NO_EQUIVALENT:
        return f"{key}: {NO_EQUIVALENT[name]}"
    if name in SYNONYMS:
        ours = SYNONYMS[name].keys[0]
        return f"{key}: called {ours} here, but this job does not have it{_describe_owners(ours, overrides)}"
    return None


PHRASES = {
    r"Value '(.*)' of type '.*' could not be converted to Integer": "={}: must be a whole number",
    r"Value '(.*)' of type '.*' could not be converted to Float": "={}: must be a number",
    r"Value '(.*)' \(\w+\) is incompatible with type hint 'int'": "={}: must be a whole number",
    r"Value '(.*)' \(\w+\) is incompatible with type hint 'float'": "={}: must be a number",
    r"Value '(.*)' is not a valid bool.*": "={}: must be true or false",
    r"Invalid value '(.*)', expected one of \[(.*)\]": "={}: allowed are {}",
    r"Interpolation key '(.*)' not found": ": refers to {}, and there is no such key",
    r"Unsupported interpolation type (.*)": ": ${{{}:…}} is no function; a key is referred to by ${{key}}",
    r"field '.*' is not Optional": "=null: must have a value",
    r"Invalid value assigned: \w+ is not a ListConfig, list or tuple\.": ": must be a list, such as [a,b]",
    r"Structured config of type `\w+` has missing mandatory value: .*": ": must be given",
}
"""OmegaConf's messages about a value, as patterns, and what crux says after the key instead."""


def explain_composition_error(error: HydraException | OmegaConfBaseException, *, overrides: Sequence[str]) -> str:
    """Return an error of Hydra's or OmegaConf's composition in one line, with the nearest valid choice.

    Args:
        overrides: the command line.
    """
    unreadable = filter(None, (explain_unreadable_override(word) for word in overrides if not word.startswith("-")))
    if isinstance(error, HydraException) and (line := next(unreadable, None)) is not None:
        return line
    text = str(error)
    if match := re.search(r"(?:Could not (?:find|load)|In '[^']*': Could not find) '([^']+)'", text):
        depth = 2 if match[1].startswith("hydra/") else 1  # hydra/launcher=gpus
        return explain_unknown_option("/".join(match[1].split("/")[:depth]), "/".join(match[1].split("/")[depth:]))
    if match := re.search(r"Could not override '([^']+)'. No match in the defaults list", text):
        return explain_unread_group(match[1])
    if match := re.search(r"Could not override '([^']+)'", text):
        cause = error.__cause__
        kind = getattr(getattr(cause, "object_type", None), "__name__", None)
        key = match[1] if find_synonym(match[1]) else getattr(cause, "full_key", None) or match[1]
        return explain_unknown_key(key, kind=kind, overrides=overrides)
    if match := re.search(r"In '?([^\s:']+)'?: .*\n?Key '([^']+)' not in '(\w+)'", text):
        option = match[1].replace("/", "=", 1)
        short_run = option == "debug=limit" and has_key(read_choice(overrides), "trainer.checkpoint_every")
        advice = "; use debug=limit_training" if short_run else ""
        return f"{option}: does not fit this experiment, which has no key {match[2]} there{advice}"
    if match := re.match(r"Ambiguous value for argument '(.*)'", text):
        quoted = quote_override(*match[1].partition("=")[::2])
        return f"{match[1]}: several values are a grid, which needs -m; one list is written [a,b], one text with commas {quoted}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    key = getattr(error, "full_key", None) or next((x[10:] for x in lines if x.startswith("full_key: ")), "")
    match = re.match(r"Error merging override \+*([^\s=]+)=", text)
    if match and not isinstance(getattr(error.__cause__, "full_key", ""), str):  # an index in a list of lists
        key = match[1]
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    message = str(cause).splitlines()[0]
    key = key or next((x.strip()[10:] for x in str(cause).splitlines() if x.strip().startswith("full_key: ")), "")
    key = "output_dir" if key in ("hydra.run.dir", "hydra.sweep.dir") else key  # which refer to it
    for pattern, words in PHRASES.items():
        if match := re.fullmatch(pattern, message):
            return key + words.format(*match.groups())
    return f"{key}: {message}" if key else message


def explain_unknown_option(group: str, option: str) -> str:
    """Return what is wrong with an option that a group does not have: the group that has it, the nearest option, all options."""
    if (group, option) in OPTION_SYNONYMS:
        return f"{group}={option}: called {group}={OPTION_SYNONYMS[group, option]} here"
    allowed = list(option_files(group))
    groups_with_it = [other for other in list_groups() if option in option_files(other)]
    guess = (
        f"did you mean {groups_with_it[0]}={option}? " if len(groups_with_it) == 1 else suggest_nearest(option, allowed)
    )
    if guess and len(allowed) > MAX_LISTED:  # the first of a long list add nothing to the guess
        return f"{group}={option}: no such option; {guess}`--help {group}` lists all {len(allowed)}"
    return f"{group}={option}: no such option; {guess}allowed are {_enumerate_choices(allowed, topic=group)}"


LAUNCHERS_BY_SCHEMA = {"ray_schema": ("gpus", "cpus"), "slurm_schema": ("slurm",)}
"""The launchers of a sweep, by the dataclass of their options."""


def list_launcher_keys() -> list[str]:
    """Return every dotted key of the launchers of a sweep."""
    return sorted({key for schema in LAUNCHERS_BY_SCHEMA for key in _list_keys_of_launcher(schema)})


def find_launchers(key: str) -> list[str]:
    """Return the launchers that have a key; all of them for `hydra.launcher` itself."""
    schemas = [
        schema for schema in LAUNCHERS_BY_SCHEMA if key == "hydra.launcher" or key in _list_keys_of_launcher(schema)
    ]
    return [name for schema in schemas for name in LAUNCHERS_BY_SCHEMA[schema]]


def _list_keys_of_launcher(schema: str) -> list[str]:
    Plugins.instance()  # imports crux's launchers, which store their dataclasses
    return [f"hydra.launcher.{key}" for key in ConfigStore.instance().load(f"hydra/launcher/{schema}.yaml").node]
