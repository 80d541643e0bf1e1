"""Markdown tables."""

import pytest

from crux.config.markdown import markdown_table


def test_each_row_is_one_line() -> None:
    """Cells are anything that `str` writes; a table may have no rows."""
    assert markdown_table(["name", "n"], [["a", 1], ("b", None)]) == (
        "| name | n |\n| --- | --- |\n| a | 1 |\n| b | None |"
    )
    assert markdown_table(["name"], []) == "| name |\n| --- |"


def test_cells_cannot_break_the_table() -> None:
    assert markdown_table(["x"], [["|W|\nand b"]]).splitlines()[-1] == r"| \|W\| and b |"


def test_rows_are_as_long_as_the_header() -> None:
    with pytest.raises(ValueError, match="a row of 1 cells under a header of 2"):
        markdown_table(["a", "b"], [["only one"]])
