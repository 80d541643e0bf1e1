"""Count what reading a text left out or changed, with the reason and the first place."""

from typing import NamedTuple


class Note(NamedTuple):
    """Rows that were skipped or changed for one reason."""

    reason: str
    """Such as `null`."""
    rows: int
    """Number of rows."""
    first: str
    """File and row of the first one."""


class Tally:
    """Counts of the rows that one pass over a text skipped and changed."""

    def __init__(self) -> None:
        self._skipped: dict[str, Note] = {}
        self._changed: dict[str, Note] = {}

    def skip(self, reason: str, *, where: str) -> None:
        """Count a row that is not used."""
        self._add(self._skipped, reason, where)

    def change(self, reason: str, *, where: str) -> None:
        """Count a row that is used, but not as it is."""
        self._add(self._changed, reason, where)

    @property
    def skipped(self) -> list[Note]:
        """Rows that are not used, by reason."""
        return list(self._skipped.values())

    @property
    def changed(self) -> list[Note]:
        """Rows that are used in changed form, by reason."""
        return list(self._changed.values())

    @staticmethod
    def _add(notes: dict[str, Note], reason: str, where: str) -> None:
        before = notes.get(reason, Note(reason, 0, where))
        notes[reason] = before._replace(rows=before.rows + 1)
