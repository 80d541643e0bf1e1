"""What crux takes from torch's private parts (crux.subjects.shallow) is still there."""

import torch
from torch import nn

from crux.subjects.shallow import with_part


def test_a_shallow_copy_has_a_part_of_its_own() -> None:
    original = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    linear = original[1]
    copied = with_part(original, "1", nn.Identity())
    what_now = (
        f"torch {torch.__version__} no longer keeps the children of a module in the dict `_modules`, or copies it: rewrite "
        "crux/subjects/shallow.py, for example with copy.deepcopy and a memo that holds what is shared"
    )
    assert isinstance(copied[1], nn.Identity), what_now
    assert original[1] is linear, what_now
    assert copied[0] is original[0], what_now
