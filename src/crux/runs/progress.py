"""Progress bars of work that is no training."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def show_progress(description: str, *, total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar with the remaining time on standard error while the block runs; yield what sets how many items are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.update(task, completed=done)
