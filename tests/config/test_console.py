"""Consoles."""

import io

import pytest
from rich.table import Table

from crux.config.console import PlainConsole, make_console


def test_only_an_output_that_is_no_terminal_has_the_given_width(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_console(width=140).width == 140
    monkeypatch.setenv("COLUMNS", "77")
    assert make_console(width=None).width == 77
    for narrow in ("0", "20"):
        monkeypatch.setenv("COLUMNS", narrow)
        assert make_console(width=None).width == 60
    monkeypatch.setenv("COLUMNS", "77")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then treats the output as a terminal
    assert make_console(width=140).width == 77


def test_brackets_are_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    make_console(width=80).print("runs/[red]1 of 2")
    make_console(width=80, stderr=True).print("3")
    assert capsys.readouterr() == ("runs/[red]1 of 2\n", "3\n")


def test_columns_are_straight_after_symbols_are_replaced() -> None:
    """λ takes one column and `lambda` six."""
    written = io.BytesIO()
    console = PlainConsole(file=io.TextIOWrapper(written, encoding="latin-1", write_through=True), width=60)
    table = Table("what", "value")
    table.add_row("sparsity λ", "1.5")
    table.add_row("‖x̂‖/‖x‖", "0.9")
    console.print(table)
    assert written.getvalue().decode("latin-1") == (
        "+-------------------------+\n"
        "| what            | value |\n"
        "|-----------------+-------|\n"
        "| sparsity lambda | 1.5   |\n"
        "| ||x^||/||x||    | 0.9   |\n"
        "+-------------------------+\n"
    )


def test_a_closed_pipe_does_not_end_the_process() -> None:
    class ClosedPipe(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    console = PlainConsole(file=ClosedPipe())
    console.print("1")
    console.print("2")
