"""Text in one or two columns, wrapped to the width of the terminal."""

import shutil
import textwrap
from collections.abc import Sequence

from crux.config.printing import printable

LEFT_WIDTH = 36
"""Maximum width of the left column, in characters."""


def format_heading(text: str) -> str:
    """Return an underlined heading."""
    return f"{text}\n{'-' * len(text)}"


def format_table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """Return a title above rows of two columns."""
    column = max(len(left) for left, _ in rows) + 4
    return "\n".join([title, *(format_columns(f"  {left}", right, column=column) for left, right in rows)])


def format_columns(left: str, right: str, *, column: int) -> str:
    """Return two columns; the right one wraps, and begins on the next line if the left one is too long."""
    width, left, right = _choose_width(), printable(left), printable(right)
    column = min(column, width // 2)
    wrapped = textwrap.wrap(right, width - column, break_on_hyphens=False) or [""]
    if len(left) > column - 2:
        return "\n".join([left, *(" " * column + line for line in wrapped)])
    first, *rest = wrapped
    return "\n".join([f"{left:{column}}{first}".rstrip(), *(" " * column + line for line in rest)])


def wrap(text: str, *, indent: int, hanging: int = 0) -> str:
    """Return the text wrapped to the terminal; lines after the first are indented by `hanging` more characters."""
    return textwrap.fill(
        printable(text),
        _choose_width(),
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hanging),
        break_on_hyphens=False,
    )


def _choose_width() -> int:
    """Return the width of the terminal, but at least 60 and at most 130 columns, so that the page is pleasant to read."""
    return max(60, min(shutil.get_terminal_size((110, 24)).columns, 130))
