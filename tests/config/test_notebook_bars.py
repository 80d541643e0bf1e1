"""Progress bars in a notebook: all drawings of the bars replace each other in one output of the cell."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from crux.config import notebook_bars
from crux.config.notebook_bars import NotebookBars, in_notebook


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Replace IPython by a stand-in, and draw without pauses; return the texts that are drawn, in a list per output of the cell."""
    shown: dict[str, list[str]] = {}

    def display(data: dict[str, str], *, raw: bool, display_id: str) -> None:
        assert raw
        shown[display_id] = [data["text/plain"]]

    def update_display(data: dict[str, str], *, raw: bool, display_id: str) -> None:
        assert raw
        shown[display_id].append(data["text/plain"])

    package, module = ModuleType("IPython"), ModuleType("IPython.display")
    stand_in: Any = SimpleNamespace(kernel=object())
    vars(package)["get_ipython"] = lambda: stand_in
    vars(module).update(display=display, update_display=update_display)
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(notebook_bars, "MIN_INTERVAL", 0.0)
    return shown


def test_the_kernel_of_a_notebook_is_recognised(outputs: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not in_notebook()


def test_all_drawings_replace_each_other_in_one_output(outputs: dict[str, list[str]]) -> None:
    bars = NotebookBars("{task.description}", "{task.completed:.0f}/{task.total:.0f}")
    task = bars.add_task("training", total=3)
    bars.start()
    for _ in range(3):
        bars.advance(task)
    bars.stop()
    (texts,) = outputs.values()
    assert texts[-1] == "training 3/3"
    assert all(len(text.splitlines()) == 1 for text in texts)


def test_bars_of_short_work_are_not_shown_and_transient_bars_are_removed_at_the_end(
    outputs: dict[str, list[str]],
) -> None:
    # the work is over before the delay of a minute
    short = NotebookBars("{task.description}", delay=60.0, transient=True)
    short.advance(short.add_task("reading", total=1))
    short.stop()
    assert not outputs
    transient = NotebookBars("{task.description}", transient=True)
    transient.advance(transient.add_task("reading", total=1))
    transient.stop()
    (texts,) = outputs.values()
    assert "reading" in texts
    assert texts[-1] == ""


def test_bars_that_are_switched_off_draw_nothing(outputs: dict[str, list[str]]) -> None:
    bars = NotebookBars("{task.description}", disable=True)
    bars.advance(bars.add_task("training", total=1))
    bars.stop()
    assert not outputs


def test_a_half_imported_ipython_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    assert not in_notebook()
