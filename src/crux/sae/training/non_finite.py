"""The watch for losses and gradients that stop being finite numbers."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crux.config.errors import UserError


class NonFiniteLossError(UserError):
    """The loss or its gradient stopped being a number: the optimiser's settings are too bold for the data."""

    def __init__(self, *, at: str, kept: str) -> None:
        super().__init__(
            f"the loss or its gradient stopped being a finite number at {at}; try a lower optimizer.lr, a lower "
            f"optimizer.clip or loss.max_norm ({kept})"
        )


class NonFiniteWatch(nn.Module):
    """Notes on the device, without waiting for it, the first step of each run that showed a non-finite value."""

    first_bad_step: Tensor
    """By run, counted from 1; −1: none yet."""

    def __init__(self, n_runs: int) -> None:
        super().__init__()
        self.register_buffer("first_bad_step", torch.full((n_runs,), -1, dtype=torch.long))

    def check(self, values: Float[Tensor, "runs"], *, step: int) -> None:
        """Take in one value of each run; `step` counts from 1, as the history does."""
        bad = ~torch.isfinite(values) & (self.first_bad_step < 0)
        self.first_bad_step = torch.where(bad, step, self.first_bad_step)
