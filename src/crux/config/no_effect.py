"""Keys that would be read by nothing, given what else was chosen. Accepting them would let a user believe that they changed something."""

from collections.abc import Collection

from crux.config.errors import UserError


def check_has_effect(given: Collection[str], *keys: str, because: str) -> None:
    """Check that none of these keys is on the command line.

    Args:
        given: the keys on the command line.
        keys: keys without effect; a name that ends in `.` stands for all keys of that section.
        because: why they have none, as the rest of a sentence.

    Raises:
        UserError: for the first key that was given.
    """
    for key in keys:
        for typed in sorted(given):
            if typed == key or (key.endswith(".") and typed.startswith(key)):
                raise UserError(f"{typed}: has no effect, because {because}; leave it out")
