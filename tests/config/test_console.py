"""Consoles."""

import pytest

from crux.config.console import make_console


def test_only_an_output_that_is_no_terminal_has_the_given_width(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_console(width=140).width == 140
    monkeypatch.setenv("COLUMNS", "77")
    assert make_console(width=None).width == 77
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then treats the output as a terminal
    assert make_console(width=140).width == 77


def test_brackets_are_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    make_console(width=80).print("runs/[red]1 of 2")
    make_console(width=80, stderr=True).print("3")
    assert capsys.readouterr() == ("runs/[red]1 of 2\n", "3\n")
