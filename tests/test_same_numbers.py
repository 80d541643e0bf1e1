"""The commands of same_numbers.py end with the numbers that were recorded."""

import json

import pytest

from tests.same_numbers import COMMANDS, RECORDED, Session, describe_machine, list_differences


@pytest.fixture(scope="session")
def session(cache: object, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Return a session, in which each command runs once."""
    return Session(tmp_path_factory.mktemp("same_numbers"))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends_with_the_recorded_numbers(name: str, session: Session) -> None:
    recorded = json.loads(RECORDED.read_text("utf-8"))
    exact = recorded["machine"] == describe_machine()
    lines = list_differences(session[name].numbers, recorded["numbers"][name], exact=exact)
    how = "on the machine of the record, bit for bit" if exact else "not on the machine of the record, to 1e-4"
    assert not lines, "\n".join([f"{name}: {len(lines)} differences ({how})", *lines])
