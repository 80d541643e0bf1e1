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
    for field in fields(options):  # pyright: ignore[reportArgumentType]
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
        if not all(_is_within(value, bound) for bound in bounds):
            yield describe_bounds(bounds)
        yield from _describe_violations(value, inner)
    elif origin in (UnionType, Union):
        (inner,) = (kind for kind in get_args(hint) if kind is not type(None))
        yield from _describe_violations(value, inner)
    elif origin is list:
        for item in value:
            yield from (f"numbers that are {allowed}" for allowed in _describe_violations(item, get_args(hint)[0]))


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


def describe_bounds(bounds: Sequence[object]) -> str:
    """Return bounds in words, such as `from 0 to 1`."""
    match bounds:
        case [Ge(low), Le(high)]:
            return f"from {low:g} to {high:g}"  # pyright: ignore[reportGeneralTypeIssues]
        case [Ge(low), Lt(high)]:
            return f"from {low:g} up to but not {high:g}"
        case [Gt(low), Le(high)]:
            return f"more than {low:g}, up to {high:g}"
        case [Gt(low), Lt(high)]:
            return f"between {low:g} and {high:g}"
        case [Ge(limit)]:
            return f"{limit:g} or more"
        case [Gt(limit)]:
            return f"more than {limit:g}"
        case [MinLen(n)]:
            return f"a list of at least {'one' if n == 1 else n}"
        case _:
            raise AssertionError(f"no words for these bounds: {bounds}")


def _format_value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and value == value else str(value)
