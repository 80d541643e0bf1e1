"""The private attribute of torch that crux.subjects.shallow uses still exists."""

import torch
from torch import nn

from crux.subjects.shallow import copy_with_part


def test_copy_replaces_one_child_and_shares_the_others() -> None:
    original = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    linear = original[1]
    copied = copy_with_part(original, "1", nn.Identity())
    advice = (
        f"torch {torch.__version__} no longer keeps the children of a module in the dict `_modules`, or copies it: rewrite "
        "crux/subjects/shallow.py, for example with copy.deepcopy and a memo that holds what is shared"
    )
    assert isinstance(copied[1], nn.Identity), advice
    assert original[1] is linear, advice
    assert copied[0] is original[0], advice
