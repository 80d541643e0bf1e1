"""A penalty that is infinite, for the tests of runs whose loss stops being a finite number; the command line refuses such a λ."""

from typing import Any

import pytest
import torch

from crux.sae.training.sparsity import Sparsity

LARGE = 1e9
"""The λ from which the penalty is infinite after `make_large_penalties_infinite`."""


def make_large_penalties_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply each λ of at least `LARGE` by 1e29, which makes the penalty or its gradient infinite in float32."""
    original = Sparsity.__init__

    def start(self: Sparsity, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.weight.mul_(torch.where(self.weight >= LARGE, 1e29, 1.0))

    monkeypatch.setattr(Sparsity, "__init__", start)
