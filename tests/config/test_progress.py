"""Progress bars and the plain line that takes their place."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from crux.config import progress as module
from crux.config.progress import progress, show_progress, track

SHOW_CURSOR, HIDE_CURSOR = b"\x1b[?25h", b"\x1b[?25l"
"""Escape codes of a terminal."""


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(module, "clock", clock)
    with show_progress(True):
        yield clock


def screen(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, encoding: str = "utf-8") -> io.BytesIO:
    """Return a buffer that receives everything that is shown."""
    out = io.BytesIO()
    file = io.TextIOWrapper(out, encoding=encoding, write_through=True)
    console = Console(
        file=file, force_terminal=terminal, force_interactive=terminal, width=100, markup=False, color_system=None
    )
    monkeypatch.setattr(module, "LIVE", console)
    return out


def test_track_yields_the_items_unchanged(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (False, True):
        screen(monkeypatch, terminal=terminal)
        assert list(track([1, 2, 3], "counting")) == [1, 2, 3]
        assert list(track(iter("ab"), "counting")) == ["a", "b"]


def test_one_plain_line_after_five_seconds(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    out = screen(monkeypatch, terminal=False)
    # Each item takes one second, so the sixth is the first to end after more than PLAIN_AFTER = 5 s; 94 s are left then.
    for i in track(range(100), "evaluating [text]"):
        clock.now += 1.0
        assert out.getvalue() == (b"" if i < 6 else b"evaluating [text] ... about 1:34 left\n"), i


def test_quick_work_says_nothing(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    out = screen(monkeypatch, terminal=False)
    for _ in range(100):
        for _ in track(range(4), "quick"):
            clock.now += 1.0
    assert out.getvalue() == b""


def test_work_within_work_has_no_line_of_its_own(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the outer work has a line. It appears as early as during the first outer item, and is printed once per job."""
    out = screen(monkeypatch, terminal=False)
    for _ in range(2):
        for _ in track(range(3), "comparing bases"):  # the second time, its line has been printed already
            for _ in track(range(10), "edges"):
                clock.now += 2.0
    assert out.getvalue() == b"comparing bases ...\n"
    with show_progress(True), progress("comparing bases", total=None) as advance:  # `show_progress` begins another job
        clock.now += 9
        advance()
    assert out.getvalue() == b"comparing bases ...\n" * 2


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_is_shown_when_switched_off(clock: Clock, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    out = screen(monkeypatch, terminal=terminal)
    monkeypatch.setattr(module, "DELAY", 0.0)
    # the outer False takes precedence: a worker of a sweep switches progress off around a job, which switches it on
    with show_progress(False), show_progress(True):
        for _ in track(range(10), "hidden"):
            clock.now += 10
    assert out.getvalue() == b""


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DELAY", 0.01)


def wait_until(out: io.BytesIO, text: bytes) -> None:
    """Wait until the thread of the bars has drawn a text."""
    end = time.monotonic() + 10
    while text not in out.getvalue():
        assert time.monotonic() < end, out.getvalue()
        time.sleep(0.01)


@pytest.mark.usefixtures("at_once")
def test_bars_on_a_terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars are one below the other, and disappear at the end."""
    out = screen(monkeypatch, terminal=True)
    with progress("evaluating λ", total=4000) as advance:
        clock.now += 10
        advance(1000)
        wait_until(out, "evaluating λ".encode())
        wait_until(out, b"1,000/4,000 about 0:30 left")
        with progress("within", total=None) as inner:
            clock.now += 2
            inner(5)
            wait_until(out, b"within")
    end = out.getvalue().rpartition(b"within")[2]
    assert b"\x1b[1A\x1b[2K" in end  # up a line, which is cleared
    assert SHOW_CURSOR in end
    assert module._Process.bars is None


@pytest.mark.usefixtures("at_once")
def test_an_ascii_terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    out = screen(monkeypatch, terminal=True, encoding="ascii")
    with progress("λ of " + 300 * "x", total=2) as advance:
        clock.now += 10
        advance()
        wait_until(out, b"lambda of xxx")
        wait_until(out, b"1/2")


@pytest.mark.usefixtures("at_once")
def test_a_failure_takes_the_bar_away(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    out = screen(monkeypatch, terminal=True)

    def fails() -> None:
        for _ in track(range(3), "failing"):
            clock.now += 10
            wait_until(out, b"failing")
            raise KeyError("no")

    with pytest.raises(KeyError):
        fails()
    wait_until(out, SHOW_CURSOR)
    assert module._Process.bars is None


@pytest.mark.usefixtures("at_once")
def test_within_another_bar_of_the_console(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation during training is such a case."""
    out = screen(monkeypatch, terminal=True)
    with Progress(console=module.LIVE) as training:
        training.add_task("training", total=10)
        for _ in track(range(2), "evaluating"):
            clock.now += 10
            time.sleep(0.05)
        training.advance(training.task_ids[0])
    assert b"training" in out.getvalue()
    assert module._Process.bars is None


def test_a_process_that_ends_within_the_work_gives_the_cursor_back() -> None:
    program = (
        "import io, sys, time\n"
        "from rich.console import Console\n"
        "from crux.config import progress as module\n"
        "module.LIVE = Console(file=sys.stdout, force_terminal=True, force_interactive=True, color_system=None)\n"
        "module.DELAY = 0.0\n"
        "items = module.track(range(3), 'under way')\n"  # without this reference, the generator and its bar would be closed
        "next(items)\n"
        "time.sleep(0.3)\n"
        "sys.exit(3)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(module.__file__).parents[2])}
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False, timeout=60, env=environment
    )
    assert ended.returncode == 3
    assert ended.stdout.rindex(SHOW_CURSOR) > ended.stdout.rindex(HIDE_CURSOR)
