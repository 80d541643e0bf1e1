"""The history of a run: every change of a row that a resumed run keeps is found."""

from pathlib import Path

import pytest

from crux.config.errors import UserError
from crux.runs.history import History


@pytest.fixture
def history(tmp_path: Path) -> History:
    """Return a history with rows of the steps 1, 2, 2 and 3."""
    history = History(tmp_path)
    for step, name in ((1, "train/loss"), (2, "train/loss"), (2, "val/kl"), (3, "train/loss")):
        history.add(step, {name: 0.5 * step})
    return history


KEPT = [{"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": 1.0}, {"step": 2, "val/kl": 1.0}]


def test_rows_after_a_step_are_removed_from_both_files(history: History) -> None:
    history.keep_until(2)
    assert history.read() == KEPT
    assert history.sums.read_text().split()[::2] == ["1", "2", "2"]
    history.keep_until(2)
    history.add(3, {"a": 1.0})
    history.keep_until(3)
    assert history.read() == [*KEPT, {"step": 3, "a": 1.0}]


@pytest.mark.parametrize("name", ["path", "sums"])
def test_every_changed_byte_is_found_or_changes_no_row(name: str, history: History) -> None:
    path: Path = getattr(history, name)
    contents = {file: file.read_bytes() for file in (history.path, history.sums)}
    n_found = 0
    for position in range(len(contents[path])):
        changed = bytearray(contents[path])
        changed[position] ^= 1 << position % 7
        path.write_bytes(changed)
        try:
            history.keep_until(2)
        except UserError:
            n_found += 1
        else:
            assert history.read() == KEPT
        for file, content in contents.items():
            file.write_bytes(content)
    assert n_found > 0.6 * len(contents[path])  # the rest belongs to the row that is removed


@pytest.mark.parametrize("change", ["remove", "double", "swap", "cut"])
def test_a_line_that_was_moved_is_found(change: str, history: History) -> None:
    lines = history.path.read_bytes().splitlines(keepends=True)
    match change:
        case "remove":
            del lines[1]
        case "cut":
            del lines[2:]
        case "double":
            lines.insert(1, lines[0])
        case _:
            lines[0], lines[1] = lines[1], lines[0]
    history.path.write_bytes(b"".join(lines))
    with pytest.raises(UserError, match=r"history\.jsonl line \d is damaged"):
        history.keep_until(2)


def test_a_kill_between_the_checksum_and_its_line_loses_nothing(history: History) -> None:
    lines = history.path.read_bytes().splitlines(keepends=True)
    history.path.write_bytes(b"".join(lines[:3]) + lines[3][:7])
    history.keep_until(2)
    assert history.read() == KEPT
    history.sums.write_bytes(history.sums.read_bytes() + b"2 ")
    history.keep_until(2)
    assert history.read() == KEPT


def test_a_history_without_checksums_is_one_of_an_earlier_version(history: History) -> None:
    history.sums.unlink()
    history.keep_until(2)
    assert history.read() == KEPT
    assert len(history.sums.read_text().splitlines()) == 3
