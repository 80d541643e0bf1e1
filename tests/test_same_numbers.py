"""The commands of same_numbers.py end with the numbers that were recorded."""

from typing import Any

import pytest

from tests import same_numbers
from tests.same_numbers import COMMANDS, Session, compare_with_records, list_differences, read_records


@pytest.fixture(scope="session")
def session(cache: object, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Return a session, in which each command runs once."""
    return Session(tmp_path_factory.mktemp("same_numbers"))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends_with_the_recorded_numbers(name: str, session: Session) -> None:
    lines = compare_with_records(name, session[name].numbers)
    assert not lines, "\n".join([f"{name}: {len(lines)} differences", *lines])


def test_records_have_the_same_names_and_mostly_agree() -> None:
    first, *others = (one["numbers"] for one in read_records())
    assert first.keys() == set(COMMANDS)
    for other in others:
        assert all(first[name].keys() == other[name].keys() for name in COMMANDS)
        assert sum(not list_differences(other[name], first[name]) for name in COMMANDS) >= 45


def test_differences_from_records_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def list_lines(found: dict[str, Any]) -> list[str]:
        return compare_with_records("command", found)

    records = [{"machine": m, "numbers": {"command": {"loss": 1.0, "l0": l0}}} for m, l0 in (("a", 3), ("b", 3.0001))]
    monkeypatch.setattr(same_numbers, "read_records", lambda: records)
    assert list_lines({"loss": 1.0003, "l0": 3}) == []  # to 5e-4
    assert list_lines({"loss": 1.001, "l0": 3}) == ["loss: is 1.001, was 1.0"]
    records[1]["numbers"]["command"]["l0"] = 4  # now rounding errors decide
    assert list_lines({"loss": 2.0, "l0": 7}) == []
    assert list_lines({"loss": 2.0}) == ["l0: gone, was 3"]
