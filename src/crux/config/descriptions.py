"""Descriptions that people read: of options, from their YAML files, and of keys, from the source of their dataclasses.

An option is described by the first comment line of its YAML, a key by the string below its dataclass field.
"""

import ast
import sys
from collections.abc import Sequence
from enum import Enum
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from crux.config.bounds import describe_bounds, drop_limits


def read_option_comment(path: Path) -> list[str]:
    """Return the comment lines at the top of an option's YAML; the first line is the option's description."""
    lines = []
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line[1:].strip())
    return lines


@cache
def read_field_descriptions(kind: type) -> dict[str, str]:
    """Return the description of each field of a dataclass, inherited fields included."""
    descriptions: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        descriptions |= _read_module_descriptions(base.__module__).get(base.__qualname__, {})
    return descriptions


@cache
def _read_module_descriptions(module: str) -> dict[str, dict[str, str]]:
    """Return the field descriptions of every class at the top level of a module, by class and field."""
    path = getattr(sys.modules[module], "__file__", None)
    if path is None or not path.endswith(".py"):
        return {}
    classes = [node for node in ast.parse(Path(path).read_text("utf-8")).body if isinstance(node, ast.ClassDef)]
    return {node.name: dict(filter(None, map(_read_field, pairwise(node.body)))) for node in classes}


def _read_field(statements: tuple[ast.stmt, ast.stmt]) -> tuple[str, str] | None:
    """Return a field's name and description if the statements are a field and a string."""
    match statements:
        case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
            return name, " ".join(text.split())
        case _:
            return None


def describe_type(hint: Any) -> str:
    """Return the values that an annotation allows, in words: `integer, 1 or more, or null`."""
    if get_origin(hint) in (UnionType, Union):
        (inner,) = (kind for kind in get_args(hint) if kind is not type(None))
        words = describe_type(inner)
        return f"{words}{',' if ',' in words else ''} or null"
    inner, bounds = _split_bounds(hint)
    if get_origin(inner) is list:
        return _describe_list(get_args(inner)[0], bounds)
    return ", ".join([_describe_plain_type(inner, plural=False), *([describe_bounds(bounds)] if bounds else [])])


def _describe_list(item: Any, bounds: Sequence[object]) -> str:
    inner, item_bounds = _split_bounds(item)
    if get_origin(inner) is list:
        return f"list of lists of {_describe_plain_type(_split_bounds(get_args(inner)[0])[0], plural=True)}"
    each = f", each {describe_bounds(item_bounds)}" if item_bounds else ""
    # the only bound of lists is MinLen, so that a list with a bound is not empty
    return f"{'non-empty list' if bounds else 'list'} of {_describe_plain_type(inner, plural=True)}{each}"


def _split_bounds(hint: Any) -> tuple[Any, Sequence[object]]:
    """Return the type in an annotation, and its bounds."""
    if get_origin(hint) is Annotated:
        inner, *bounds = get_args(hint)
        return inner, drop_limits(bounds)
    return hint, ()


def _describe_plain_type(kind: Any, *, plural: bool) -> str:
    """Return a type without bounds in words, such as `integer` or, in the plural, `integers`."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        *most, last = kind.__members__
        return f"{', '.join(most)} or {last}"
    if kind is bool:
        return "true or false"
    # a single string may be any text, but the strings in lists are names, for example of hook points
    words = {int: ("integer", "integers"), float: ("number", "numbers"), str: ("text", "names")}
    return words.get(kind, ("mapping", "mappings"))[plural]
