"""Reading JSON files that somebody else wrote: whatever is wrong with a file is one line that names it."""

import json
import math
from pathlib import Path
from typing import Any

from crux.config.errors import UserError


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file in UTF-8.

    Raises:
        UserError: if there is no such file, it cannot be read, or it is not a JSON object; also if a key occurs twice, a number is
            not finite, or objects are nested too deeply to be read.
    """
    check_file(path)
    try:
        content = json.loads(
            path.read_text(encoding="utf-8-sig"),  # some editors write a byte order mark
            object_pairs_hook=_reject_duplicates,
            parse_constant=_parse_float,
            parse_float=_parse_float,
        )
    except RecursionError as error:
        raise UserError(f"{path}: not a JSON file that can be read (objects are nested too deeply)") from error
    except ValueError as error:  # bad JSON, bytes that are not UTF-8, numbers of thousands of digits
        raise UserError(f"{path}: not a JSON file, or a broken one ({_first_line(error)})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a JSON object is needed, this is a {type(content).__name__}")
    return content


def check_file(path: Path) -> None:
    """Raise a UserError if there is no regular file at a path, or a symbolic link that leads nowhere."""
    try:
        if path.is_file():
            return
        kind = (
            "a folder, not a file"
            if path.is_dir()
            else "not a regular file"
            if path.exists()
            else "a symbolic link to a file that does not exist"
            if path.is_symlink()
            else "no such file"
        )
    except (OSError, ValueError) as error:  # a name that is too long, or that contains a null character
        raise UserError(f"{path}: not the path of a file ({_first_line(error)})") from error
    raise UserError(f"{path}: {kind}")


def shorten_value(value: object) -> str:
    """Return a value as it is printed in a message: in one line of at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict; raise ValueError if a key occurs twice, since readers differ in which value they take."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise ValueError(f"the key {twice!r} occurs twice")
    return content


def _parse_float(text: str) -> float:
    """Return a number; raise ValueError if it is NaN or infinite, which JSON does not have."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"the number {text[:30]} is not finite")
    return number


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
