"""Progress bars in a Jupyter notebook, in plain text that is replaced in place. rich's own bars need ipywidgets there."""

import sys
import time
import uuid
import warnings
from importlib import import_module
from io import StringIO
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn, TaskID

MIN_INTERVAL = 0.2
"""Minimum seconds between two drawings, because each is a message to the notebook."""

WIDTH = 110
"""Width of the bars, in characters."""


def in_notebook() -> bool:
    """Return True if this process is the kernel of a notebook."""
    # a notebook's kernel has imported it before; another thread may be importing it just now, so that it may lack the function
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_ipython is not None and getattr(get_ipython(), "kernel", None) is not None


def import_tqdm_quietly() -> None:
    """Import tqdm, which other libraries use, without its warning that ipywidgets is missing: crux draws its own bars."""
    if in_notebook():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="IProgress not found")
            import_module("tqdm.auto")


class NotebookBars(Progress):
    """Bars that are drawn as one output of a notebook's cell.

    Args:
        delay: seconds after which the bars are shown, so that short work shows none.
        transient: True to remove the bars when they stop.
    """

    def __init__(
        self, *columns: str | ProgressColumn, delay: float = 0.0, transient: bool = False, disable: bool = False
    ) -> None:
        super().__init__(*columns, console=Console(file=StringIO(), width=WIDTH), auto_refresh=False, disable=disable)
        self._delay, self._transient = delay, transient
        self._display_id: str | None = None
        self._started_at = self._drawn_at = time.monotonic()

    def start(self) -> None:
        """Begin to measure the delay, before which nothing is drawn."""
        self._started_at = time.monotonic()

    def refresh(self) -> None:
        """Draw the bars, if the delay is over and the last drawing is long enough ago."""
        now = time.monotonic()
        if now - self._started_at >= self._delay and now - self._drawn_at >= MIN_INTERVAL:
            self._draw()

    def stop(self) -> None:
        """Draw the bars as they are at the end, or remove them."""
        if self._display_id is not None or not (self._transient or self.disable):
            self._draw(empty=self._transient)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Count further work of a task, and draw the bars."""
        super().advance(task_id, advance)
        self.refresh()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change a task, and draw the bars."""
        super().update(task_id, **changes)
        self.refresh()

    def _draw(self, *, empty: bool = False) -> None:
        if self.disable:
            return
        from IPython.display import display, update_display  # pyright: ignore[reportMissingImports]

        self._drawn_at = time.monotonic()
        text = "" if empty else _render(self.get_renderable())
        if self._display_id is None:
            self._display_id = uuid.uuid4().hex
            display({"text/plain": text}, raw=True, display_id=self._display_id)
        else:
            update_display({"text/plain": text}, raw=True, display_id=self._display_id)


def _render(content: RenderableType) -> str:
    """Return plain text of what rich would draw on a terminal."""
    console = Console(file=StringIO(), width=WIDTH, force_jupyter=False, no_color=True, legacy_windows=False)
    with console.capture() as capture:
        console.print(content)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())
