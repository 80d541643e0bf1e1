"""Quote values that have characters with a meaning in the shell or in Hydra's grammar, such as paths with `=`, commas or spaces."""

import re
import shlex
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

SPECIAL_CHARACTERS = "= , ( ) { } [ ] # ~ ' \" or letters such as é"
"""Examples of the characters of a value that Hydra's grammar takes only between quotes."""


def quote_override(key: str, value: str) -> str:
    """Return an argument whose value is exactly one text, as it is typed in a shell: `'key="value"'`.

    A leading `~/` is replaced by the home folder, which the shell does not do after `key=`. Quotes are left out if none are needed.
    """
    if value == "~" or value.startswith("~/"):
        value = str(Path.home()) + value[1:]
    if not _needs_quotes(key, value):
        return shlex.quote(f"{key}={value}")
    escaped = re.sub(r"\\*\$\{", lambda match: match[0][:-2] * 2 + r"\${", value)  # OmegaConf would interpolate ${…}
    escaped = re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + ('\\"' if match[2] else ""), escaped)
    return shlex.quote(f'{key}="{escaped}"')


def _needs_quotes(key: str, value: str) -> bool:
    """Return True if Hydra reads the value without quotes as anything else than exactly this text."""
    try:
        override = OverridesParser.create().parse_override(f"{key}={value}")
    except (HydraException, ValueError):
        return True
    return override.is_sweep_override() or override.value() != value or "${" in value


def explain_unreadable_override(word: str) -> str | None:
    """Return what is wrong with an argument that Hydra's grammar of overrides rejects, and how it is written; None if it is readable."""
    try:
        OverridesParser.create().parse_override(word)
    except (HydraException, ValueError):  # Python converts no integers of more than 4,300 digits
        pass
    else:
        return None
    key, equals, value = word.partition("=")
    if not equals or not re.fullmatch(r"[+~]*[A-Za-z_][\w-]*([./@:][\w-]+)*", key, re.ASCII):
        return f"{word}: cannot be read; write key=value"
    if value[:1] in ("[", "{", "'", '"'):
        return (
            f"{key}: the brackets or quotes of {value} do not match, or a text in them needs quotes of its own; "
            f"if it is one text, write {quote_override(key, value)}"
        )
    if re.match(r"(range|choice|interval|glob|shuffle|sort|tag|extend_list)\(", value):
        return (
            f"{key}: {value} cannot be read as values of a grid, such as 2,4,6 or range(2,8,2); "
            f"if it is one text, write {quote_override(key, value)}"
        )
    if re.fullmatch(r"[\w.+-]+(,[\w.+-]+)*,", value, re.ASCII):
        return f"{word}: ends in a comma; the values of a grid are written without spaces, such as {key}=a,b"
    return f"{key}: {value} has characters that need quotes (such as {SPECIAL_CHARACTERS}); write {quote_override(key, value)}"
