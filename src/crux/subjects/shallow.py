"""The one thing that crux must take from torch's private parts; tests/subjects/test_shallow.py guards it."""

import copy
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def with_part(module: Module, name: str, part: nn.Module) -> Module:
    """Return a copy of the module that has `part` as its child `name` and shares everything else with the original."""
    copied = copy.copy(module)
    copied._modules = {**module._modules, name: part}  # `copy.copy` leaves one dict of children to both
    return copied
