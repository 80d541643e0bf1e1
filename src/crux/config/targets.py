"""Classes and objects that a configuration names by `_target_`."""

from collections.abc import Mapping
from typing import Any

from hydra.utils import get_class, get_method, instantiate

from crux.config.errors import UserError


def find_class(target: str, *, key: str, base: type) -> type[Any]:
    """Return the class with a dotted name, after checking that it is derived from `base`.

    Args:
        key: the option that names the class, for error messages.

    Raises:
        UserError: if there is no such class, or it is not derived from `base`.
    """
    try:
        cls = get_class(target)
    except Exception as error:
        raise UserError(f"{key}={target}: cannot be imported ({' '.join(str(error).split())})") from error
    if not issubclass(cls, base):
        raise UserError(f"{key}={target}: must be derived from {base.__module__}.{base.__qualname__}")
    return cls


def call_function(target: str, *arguments: Any, key: str, **named: Any) -> Any:
    """Call the function with a dotted name.

    Raises:
        UserError: if there is no such function.
    """
    try:
        function = get_method(target)
    except Exception as error:
        raise UserError(f"{key}={target}: cannot be imported ({' '.join(str(error).split())})") from error
    return function(*arguments, **named)


def make_object(options: Mapping[str, Any], *, key: str, base: type) -> Any:
    """Make an object of the class `_target_`, with the other keys as arguments.

    Raises:
        UserError: if it cannot be made, or is not an instance of `base`.
    """
    try:
        instance = instantiate(options)
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{key}: {dict(options)} cannot be made ({reason})") from error
    if not isinstance(instance, base):
        raise UserError(f"{key}: {dict(options)} is no {base.__name__}; it needs _target_=<its class>")
    return instance
