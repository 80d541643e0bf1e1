"""The consoles that tables are printed on."""

from rich.console import Console


def make_console(*, width: int | None, stderr: bool = False) -> Console:
    """Return a rich console that prints text as it is: nothing is coloured by itself, and brackets are no markup.

    Args:
        width: number of columns for an output that is not a terminal (a terminal has a width); None: rich's default.
        stderr: True to print to standard error.
    """
    console = Console(stderr=stderr, highlight=False, markup=False)
    if width is not None and not console.is_terminal:
        console.width = width
    return console
