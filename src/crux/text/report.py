"""What a text consists of once it has been read: documents, tokens, rows and files of each side, and what was left out and why."""

import json
from dataclasses import asdict, dataclass, field

from crux.text.sample import SideCounts
from crux.text.sources import SourceDescription
from crux.text.tally import Note, Tally

MAX_FILES, MAX_REASONS, MAX_EXAMPLES, MAX_NAME = 50, 20, 3, 240
"""What the report lists at most: files of a side, reasons to skip files, examples of these, and characters of a name."""


@dataclass
class SideReport:
    """One side of a text."""

    documents: int
    """Documents that are used, at least in part: rows, or passages of text files."""
    documents_left_out: int
    """Documents that the limit left out. Of a data set on the hub: of those that were read."""
    tokens: int
    bytes: int | None
    """UTF-8 bytes of the text without end-of-text marks; None if the source was already tokenised."""
    files: int
    """Number of files with tokens on this side."""
    tokens_by_file: dict[str, int] = field(default_factory=dict)
    """Tokens from each file, of at most 50."""


@dataclass
class SkippedFiles:
    """Files of a folder that are not read, for one reason."""

    reason: str
    files: int
    examples: list[str]


@dataclass
class RowNote:
    """Rows that were skipped or changed, for one reason."""

    reason: str
    rows: int
    first: str
    """File and row of the first one."""


@dataclass
class TextReport:
    """The report on a text, in the run folder as text.json."""

    division: str
    """How training text and held-out text are divided."""
    every: int | None
    """One document in `every` is held out; None: the text's owner has divided it."""
    train: SideReport
    held_out: SideReport
    skipped_rows: list[RowNote]
    """Rows that are on neither side."""
    changed_rows: list[RowNote]
    skipped_files: list[SkippedFiles]
    largest_id: int
    """Largest token id that occurs; −1 if there is none."""

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "TextReport":
        """Return the report that `to_json` has written."""
        content = json.loads(text)
        sides = {side: SideReport(**content.pop(side)) for side in ("train", "held_out")}
        return cls(
            **sides,
            skipped_rows=[RowNote(**n) for n in content.pop("skipped_rows")],
            changed_rows=[RowNote(**n) for n in content.pop("changed_rows")],
            skipped_files=[SkippedFiles(**n) for n in content.pop("skipped_files")],
            **content,
        )

    def lines(self) -> list[str]:
        """Return the report as a few lines: one for each side, and one for what was left out."""
        lines = [_describe_side("training text", self.train), _describe_side("held-out text", self.held_out)]
        lines[1] += f"; {self.division}"
        notes = [f"{n.rows:,} {n.reason} row{'s' * (n.rows > 1)} (first: {n.first})" for n in self.skipped_rows]
        notes += [
            f"{n.files:,} file{'s' * (n.files > 1)} {n.reason} ({n.examples[0].rsplit('/', 1)[-1]}{', …' * (n.files > 1)})"
            for n in self.skipped_files
        ]
        lines += ["skipped: " + "; ".join(notes)] if notes else []
        lines += [f"changed: {n.rows:,} rows, {n.reason} (first: {n.first})" for n in self.changed_rows]
        return lines


def make_report(
    source: SourceDescription, counts: dict[str, SideCounts], *, available: dict[str, int], tally: Tally, every: int | None,
    only_text: bool, largest_id: int,
) -> TextReport:  # fmt: skip
    """Return the report on a text that has been read.

    Args:
        counts: what each side consists of.
        available: number of documents of each side, those that its limit left out included.
        only_text: False if some documents were token ids already, so that their bytes are unknown.
    """
    sides = {}
    for side, n in counts.items():
        by_file = {_shorten(source.files[i]): tokens for i, tokens in list(n.tokens_by_file.items())[:MAX_FILES]}
        sides[side] = SideReport(
            documents=n.documents,
            documents_left_out=available[side] - n.documents,
            tokens=n.tokens,
            bytes=n.bytes if only_text else None,
            files=len(n.tokens_by_file),
            tokens_by_file=by_file,
        )
    return TextReport(
        division=source.division.replace("{every}", str(every)),
        every=every,
        train=sides["train"],
        held_out=sides["held_out"],
        skipped_rows=[_note(n) for n in tally.skipped],
        changed_rows=[_note(n) for n in tally.changed],
        skipped_files=[
            SkippedFiles(_shorten(reason), len(paths), [_shorten(p) for p in paths[:MAX_EXAMPLES]])
            for reason, paths in list(source.skipped.items())[:MAX_REASONS]
        ],
        largest_id=largest_id,
    )


def _note(note: Note) -> RowNote:
    return RowNote(note.reason, note.rows, _shorten(note.first))


def _shorten(name: str) -> str:
    """Return the end of a long name, so that the report has a bounded length."""
    return name if len(name) <= MAX_NAME else "…" + name[1 - MAX_NAME :]


def _describe_side(name: str, side: SideReport) -> str:
    left_out = f", {side.documents_left_out:,} more left out by the limit" if side.documents_left_out else ""
    files = f" of {side.files:,} files" if side.files > 1 else ""
    return f"{name}: {side.tokens:,} tokens, {side.documents:,} documents{files}{left_out}"
