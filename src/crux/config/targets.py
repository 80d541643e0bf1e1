"""Classes and objects that a configuration names by `_target_`."""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from inspect import signature
from typing import Any

from hydra.utils import get_class, get_method, instantiate

from crux.config.errors import UserError


def check_target(target: str, *, key: str, what: str) -> None:
    """Check, without importing anything, that a dotted name can be that of a class or function of the user's.

    Args:
        what: what is needed, for the error message.

    Raises:
        UserError: if it is no dotted name, its package is not installed, or it is part of Python itself.
    """
    package = target.partition(".")[0]
    if "." not in target or not all(name.isidentifier() for name in target.split(".")):
        raise UserError(f"{key}={target}: must be a dotted name, such as my_package.name, of {what}")
    if package in sys.stdlib_module_names:
        raise UserError(f"{key}={target}: must be {what}, not a part of Python")
    if package not in sys.modules and find_spec(package) is None:
        raise UserError(f"{key}={target}: there is no package {package}; it must be installed, or on PYTHONPATH")


@contextmanager
def _without_log() -> Iterator[None]:
    """Keep Hydra from logging the failure of a search, which crux reports itself in one line."""
    logger = logging.getLogger("hydra.utils")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def find_class(target: str, *, key: str, base: type) -> type[Any]:
    """Return the class with a dotted name, after checking that it is derived from `base`.

    Args:
        key: the option that names the class, for error messages.

    Raises:
        UserError: if there is no such class, or it is not derived from `base`.
    """
    try:
        with _without_log():
            cls = get_class(target)
    except Exception as error:
        raise UserError(f"{key}={target}: cannot be imported ({' '.join(str(error).split())})") from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise UserError(f"{key}={target}: must be derived from {base.__module__}.{base.__qualname__}")
    return cls


def call_function(target: str, *arguments: Any, key: str, **named: Any) -> Any:
    """Call the function with a dotted name.

    Raises:
        UserError: if there is no such function, or it does not take these arguments.
    """
    try:
        with _without_log():
            function = get_method(target)
    except Exception as error:
        raise UserError(f"{key}={target}: cannot be imported ({' '.join(str(error).split())})") from error
    try:
        signature(function).bind(*arguments, **named)
    except TypeError as error:
        raise UserError(f"{key}={target}: does not take the arguments that it is called with ({error})") from error
    return function(*arguments, **named)


def make_object(options: Mapping[str, Any], *, key: str, base: type) -> Any:
    """Make an object of the class `_target_`, with the other keys as arguments.

    Raises:
        UserError: if it cannot be made, or its class is not derived from `base`; then nothing is called.
    """
    target = options.get("_target_") if isinstance(options, Mapping) else None
    if not isinstance(target, str):
        raise UserError(f"{key}: {options} is no {base.__name__}; it needs _target_=<its class>")
    find_class(target, key=f"{key}._target_", base=base)
    try:
        instance = instantiate(options)
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{key}: {dict(options)} cannot be made ({reason})") from error
    return instance
