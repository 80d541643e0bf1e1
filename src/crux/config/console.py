"""The consoles that tables are printed on."""

from typing import Any

from rich.console import Console
from rich.text import Text

from crux.config.printing import printable

MIN_WIDTH = 60
"""Number of columns that a table has at least; a narrower terminal breaks its lines, which can be read better than columns of letters."""


class PlainConsole(Console):
    """A rich console that prints text as it is: nothing is coloured by itself, brackets are no markup, and a closed pipe is no error.

    Symbols that the output cannot encode are replaced before they are laid out in columns.
    """

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text in the symbols of the output's encoding."""
        return super().render_str(printable(text, self.encoding), **options)

    def on_broken_pipe(self) -> None:
        """Print nothing more; rich would end the process."""
        self.quiet = True


def make_console(*, width: int | None, stderr: bool = False) -> Console:
    """Return a console for tables.

    Args:
        width: number of columns for an output that is not a terminal (a terminal has a width); None: rich's default.
        stderr: True to print to standard error.
    """
    console = PlainConsole(stderr=stderr)
    if width is not None and not console.is_terminal:
        console.width = width
    console.width = max(console.width, MIN_WIDTH)
    return console
