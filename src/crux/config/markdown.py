"""Markdown tables of reports."""

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table, one line per row.

    Cells are written as `str` writes them, on one line, with `|` escaped.

    Raises:
        ValueError: if a row does not have as many cells as the header.
    """
    lines = [header, ["---"] * len(header)]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row of {len(row)} cells under a header of {len(header)}: {list(row)}")
        lines.append([" ".join(str(cell).replace("|", "\\|").splitlines()) for cell in row])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
