"""Shallow copies of modules. They need a private attribute of torch, which tests/subjects/test_shallow.py checks."""

import copy
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def copy_with_part(module: Module, name: str, part: nn.Module) -> Module:
    """Return a copy of the module that has `part` as its child `name` and shares everything else with the original."""
    copied = copy.copy(module)
    copied._modules = {**module._modules, name: part}  # after `copy.copy` both would share one dict of children
    return copied
