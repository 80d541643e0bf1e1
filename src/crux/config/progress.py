"""Progress of work that may take long: a bar on a terminal, one plain line elsewhere.

    for tokens in track(batches, "evaluating on held-out text"): ...
    with progress("tokenising", total=n_tokens) as advance: advance(1000)

On a terminal, a bar with the remaining time appears once the work has taken DELAY seconds and disappears when it ends; nested work
has a bar below. A notebook shows the same bars as text. Elsewhere (logs, pipes), the outermost work prints its description once,
after PLAIN_AFTER seconds. Everything goes to standard error. `show_progress` switches progress on or off for the process.
"""

import atexit
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from functools import partial
from threading import Lock, Timer
from typing import Protocol, TypeVar

from rich.console import Console, RenderableType
from rich.errors import LiveError
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from crux.config.console import PlainConsole
from crux.config.notebook_bars import NotebookBars, in_notebook
from crux.config.printing import printable

DELAY, PLAIN_AFTER = 1.0, 5.0
"""Seconds until a bar and until a plain line appears."""

MIN_BAR_WIDTH = 20
"""Columns of the narrowest bars, also if the variable COLUMNS is 0."""

LIVE: Console = PlainConsole(stderr=True, force_jupyter=False)
"""The console of all bars: those that are drawn at the same time must share one."""
if LIVE.width < MIN_BAR_WIDTH:
    LIVE.width = MIN_BAR_WIDTH

Item = TypeVar("Item")
clock = time.monotonic


class Advance(Protocol):
    """A function that counts finished items."""

    def __call__(self, n: float = 1, /) -> None: ...


class _Process:
    """The state of the progress bars of this process."""

    visible = True
    bars: "_Bars | NotebookBars | None" = None
    line: "_Line | None" = None
    printed: frozenset[str] = frozenset()
    """Descriptions that have been printed as plain lines: each is printed once per job."""


@contextmanager
def show_progress(on: bool) -> Iterator[None]:
    """Switch progress on or off within this block. If it is off in an enclosing block, it stays off."""
    before = _Process.visible
    _Process.visible, _Process.printed = before and on, frozenset()
    try:
        yield
    finally:
        _Process.visible = before


def track(items: Iterable[Item], description: str, *, total: float | None = None) -> Iterator[Item]:
    """Yield the items and show how many are done; without `total`, their length is the total, if they have one."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(description, total=total) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def progress(description: str, *, total: float | None) -> Iterator[Advance]:
    """Show the progress of a block, which calls the yielded function for finished items.

    Args:
        total: number of items; None if it is unknown, which shows no remaining time.
    """
    description = printable(description, LIVE.encoding)
    if not _Process.visible:
        yield lambda n=1, /: None
    elif not LIVE.is_interactive and not in_notebook():
        outermost = _Process.line is None
        line = _Process.line = _Process.line or _Line(description, total)
        try:
            yield line.advance if outermost else lambda n=1, /: line.advance(0)
        finally:
            if outermost:
                _Process.line = None
    else:
        outermost = _Process.bars is None
        bars = _Process.bars = _Process.bars or (_notebook_bars() if in_notebook() else _Bars())
        task = bars.add_task(description, total=total)
        try:
            yield partial(bars.advance, task)
        finally:
            bars.remove_task(task)
            if outermost:
                _Process.bars = None
                bars.stop() if isinstance(bars, NotebookBars) else bars.close()


class _Line:
    """The plain line that an output which is no terminal shows for long work."""

    def __init__(self, description: str, total: float | None) -> None:
        self.description, self.total = description, total
        self.start, self.done = clock(), 0.0

    def advance(self, n: float = 1, /) -> None:
        self.done += n
        passed = clock() - self.start
        if passed > PLAIN_AFTER and self.description not in _Process.printed:
            _Process.printed |= {self.description}
            LIVE.print(
                f"{self.description} ... {_remaining_time(passed, self.done, self.total)}".rstrip(), soft_wrap=True
            )


def _remaining_time(passed: float, done: float, total: float | None) -> str:
    """Return the remaining time in words, if it is known."""
    if not total or not done:
        return ""
    minutes, seconds = divmod(max(0, round(passed / done * (total - done))), 60)
    return f"about {minutes}:{seconds:02d} left"


class _Counts(ProgressColumn):
    """The column `1,200/5,000 about 3:20 left`."""

    def render(self, task: Task) -> Text:
        of = "" if task.total is None else f"/{task.total:,.0f}"
        return Text(f"{task.completed:,.0f}{of} {_remaining_time(task.elapsed or 0.0, task.completed, task.total)}")


def _columns() -> tuple[ProgressColumn, ...]:
    description = Column(no_wrap=True, overflow="crop", max_width=48)
    return TextColumn("{task.description}", markup=False, table_column=description), BarColumn(), _Counts()


def _notebook_bars() -> NotebookBars:
    bars = NotebookBars(*_columns(), delay=DELAY, transient=True)
    bars.start()
    return bars


class _Bars(Progress):
    """The bars of all work that has taken DELAY seconds, the outermost first."""

    def __init__(self) -> None:
        super().__init__(
            *_columns(),
            console=LIVE,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # otherwise it would go to standard error
            get_time=clock,
        )
        self._closed, self._opening = False, Lock()
        timer = self._timer = Timer(DELAY, self._open)
        timer.daemon = True
        timer.start()

    def get_renderables(self) -> Iterable[RenderableType]:
        if tasks := [task for task in self.tasks if (task.elapsed or 0) >= DELAY]:
            yield self.make_tasks_table(tasks)

    def _open(self) -> None:
        with self._opening:
            if not self._closed:
                try:
                    self.start()
                except LiveError:  # before rich 14.1, within another bar
                    self._closed = True

    def close(self) -> None:
        """Remove the bars from the screen."""
        self._timer.cancel()
        with self._opening:
            self._closed = True
            self.stop()


@atexit.register
def _restore_cursor() -> None:
    """Show the cursor again if the process ends within the work."""
    if isinstance(_Process.bars, _Bars):
        _Process.bars.close()
