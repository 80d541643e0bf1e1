"""Check option dataclasses against the bounds in their annotations, such as `lr: Annotated[float, Gt(0)]`."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Protocol, Union, get_args, get_origin, get_type_hints, runtime_checkable

from annotated_types import Ge, Gt, Le, Lt, MinLen

from crux.config.errors import UserError


@runtime_checkable
class ChecksItself(Protocol):
    """An options dataclass with conditions that a bound on one key cannot express."""

    def check_section(self, key: str) -> None:
        """Raise a UserError if keys contradict each other; `key` is the name of the section, such as `sae`."""
        ...


def check_bounds(options: object, key: str) -> None:
    """Check every key of an options dataclass and of the dataclasses within it.

    Args:
        key: dotted name of the section; empty for the whole configuration.

    Raises:
        UserError: for the first value that is out of bounds, in one line that names its key.
    """
    hints = get_type_hints(type(options), include_extras=True)
    sections_first = sorted(fields(options), key=lambda field: not is_dataclass(getattr(options, field.name)))  # pyright: ignore[reportArgumentType]
    for field in sections_first:  # a key of the job may refer to one of a section, which is then the one that was typed
        name = f"{key}.{field.name}" if key else field.name
        value = getattr(options, field.name)
        if is_dataclass(value):
            check_bounds(value, name)
        else:
            for allowed in _describe_violations(value, hints[field.name]):
                raise UserError(f"{name}={_format_value(value)}: must be {allowed}")
    if isinstance(options, ChecksItself):
        options.check_section(key)


def _describe_violations(value: Any, hint: Any) -> Iterator[str]:
    """Yield a description of the bounds that a value violates: nothing if it is within all of them."""
    if value is None:
        return
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *bounds = get_args(hint)
        if kind_violations := list(_describe_violations(value, inner)):
            yield from kind_violations
        elif violated := [bound for bound in bounds if not _is_within(value, bound)]:
            beyond_limit = all(isinstance(bound, Le) and value > bound.le for bound in violated)  # pyright: ignore[reportOperatorIssue]
            yield describe_bounds(violated if beyond_limit and drop_limits(bounds) != bounds else bounds)
    elif origin in (UnionType, Union):
        (inner,) = (kind for kind in get_args(hint) if kind is not type(None))
        yield from _describe_violations(value, inner)
    elif origin is list:
        for item in value:
            for allowed in _describe_violations(item, get_args(hint)[0]):
                yield allowed if allowed.startswith("numbers that are ") else f"numbers that are {allowed}"
    elif hint is str and not str(value).strip():
        yield "text, and not empty"
    elif hint in (int, float) and (isinstance(value, bool) or not isinstance(value, int | float)):
        yield "single numbers" if hint is float else "single whole numbers"


def _is_within(value: Any, bound: object) -> bool:
    """Return True if a value is within a bound; NaN is within none."""
    match bound:
        case Ge(limit):
            return bool(value >= limit)
        case Gt(limit):
            return bool(value > limit)
        case Le(limit):
            return bool(value <= limit)
        case Lt(limit):
            return bool(value < limit)
        case MinLen(n):
            return len(value) >= n
        case _:
            raise AssertionError(f"no such bound: {bound}")


LIMIT = 10**6
"""From this number on, an upper bound is no property of a key but a limit that catches slips; descriptions leave it out."""


def drop_limits(bounds: Sequence[object]) -> Sequence[object]:
    """Return the bounds that are a property of their key."""
    return [bound for bound in bounds if not (isinstance(bound, Le) and bound.le >= LIMIT)]  # pyright: ignore[reportOperatorIssue]


def describe_bounds(bounds: Sequence[object]) -> str:
    """Return bounds in words, such as `from 0 to 1`."""
    match drop_limits(bounds) or bounds:
        case [Ge(low), Le(high)]:
            return f"from {_format(low)} to {_format(high)}"
        case [Ge(low), Lt(high)]:
            return f"from {_format(low)} up to but not {_format(high)}"
        case [Gt(low), Le(high)]:
            return f"more than {_format(low)}, up to {_format(high)}"
        case [Gt(low), Lt(high)]:
            return f"between {_format(low)} and {_format(high)}"
        case [Ge(limit)]:
            return f"{_format(limit)} or more"
        case [Le(limit)]:
            return f"{_format(limit)} or less"
        case [Gt(limit)]:
            return f"more than {_format(limit)}"
        case [MinLen(n)]:
            return f"a list of at least {'one' if n == 1 else n}"
        case _:
            raise AssertionError(f"no words for these bounds: {bounds}")


def _format(bound: Any) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def _format_value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and value == value else str(value)
