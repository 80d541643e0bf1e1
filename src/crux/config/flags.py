"""The flags of the command line, such as `-m` and `--cfg`; any other word with a dash is rejected."""

from collections.abc import Sequence

from crux.config.catalogue import list_groups
from crux.config.errors import UserError
from crux.config.messages import explain_synonym, suggest_nearest
from crux.config.registry import known_keys

FLAGS: dict[str, tuple[str, ...] | None] = {
    "--help": (), "-h": (), "--version": (), "--multirun": (), "-m": (), "--hydra-help": (),
    "--cfg": ("job", "hydra", "all"), "-c": ("job", "hydra", "all"), "--resolve": (), "--package": None, "-p": None,
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "-i": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "--shell-completion": (), "-sc": (), "--config-dir": None, "-cd": None,
}  # fmt: skip
"""The flags that may be given, each with the words that may follow it; None: any one word."""

SHORT_FLAGS = {"-m": "--multirun", "-c": "--cfg", "-p": "--package", "-i": "--info", "-sc": "--shell-completion"}

COMPLETION_COMMANDS = ("install=", "uninstall=", "query=")
"""The words that may follow `--shell-completion`, each with the name of a shell."""

EXCLUSIVE = ("--multirun", "--cfg", "--info", "--shell-completion")
"""Flags of which at most one may be given."""


def split_flags(words: Sequence[str]) -> tuple[set[str], list[str]]:
    """Return the flags of a command line, by their long names, and its other words: the overrides.

    Raises:
        UserError: for the first flag that does not exist, lacks its word, or cannot be combined with another.
    """
    flags: set[str] = set()
    overrides: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            overrides.append(word)
            continue
        if name not in FLAGS:
            raise UserError(_explain_unknown_flag(word, words))
        allowed = FLAGS[name]
        if allowed != () and not equals:
            takes_next = bool(rest) and (rest[0] in allowed if allowed else not rest[0].startswith("-"))
            value = rest.pop(0) if takes_next else ""
        if (allowed is None and not value) or (allowed and name in ("--cfg", "-c") and value not in allowed):
            following = "one of " + ", ".join(allowed) if allowed else "a word"
            raise UserError(f"{word}: must be followed by {following}")
        if value and allowed is not None and value not in allowed:
            raise UserError(f"{word}: {'takes no value' if not allowed else 'allowed are ' + ', '.join(allowed)}")
        flags.add(SHORT_FLAGS.get(name, name))
    _check_combination(flags)
    if "--shell-completion" in flags and not any(word.startswith(COMPLETION_COMMANDS) for word in overrides):
        raise UserError("--shell-completion: must be followed by install=<shell>, uninstall=<shell> or query=<shell>")
    return flags, overrides


def _explain_unknown_flag(word: str, words: Sequence[str]) -> str:
    """Return what is wrong with a word that begins with a dash but is no flag, such as `--layer=6`."""
    name, equals, value = word.partition("=")
    key = name.lstrip("-")
    if key in known_keys() or key in list_groups():
        return f"{word}: keys have no dashes, write {key}={value or '…'}"
    if equals and (line := explain_synonym(name, overrides=[w for w in words if not w.startswith("-")])) is not None:
        return f"{line}; keys have no dashes: key=value"
    guess = "" if equals else suggest_nearest(name, [flag for flag in FLAGS if flag.startswith("--")])
    return f"{name}: no such flag; {guess}keys have no dashes: key=value"


def _check_combination(flags: set[str]) -> None:
    exclusive = [flag for flag in EXCLUSIVE if flag in flags]
    if {"--multirun", "--cfg"} <= flags:
        raise UserError("-m and --cfg both given: --cfg shows the configuration of one job, so leave out -m")
    if len(exclusive) > 1:
        raise UserError(f"{exclusive[0]} and {exclusive[1]} both given: give one of them")
    for flag in ("--resolve", "--package"):
        if flag in flags and not flags & {"--cfg", "--help", "-h"}:
            raise UserError(f"{flag}: needs --cfg job, whose output it changes")
