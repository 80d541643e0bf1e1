"""Detection of losses and gradients that are not finite."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crux.config.errors import UserError


class NonFiniteLossError(UserError):
    """The error of a run whose loss or gradient is no longer finite; usually the learning rate is too high."""

    def __init__(self, *, at: str, kept: str) -> None:
        super().__init__(
            f"the loss or its gradient stopped being a finite number at {at}; try a lower optimizer.lr, a lower "
            f"optimizer.clip or loss.max_norm ({kept})"
        )


class NonFiniteWatch(nn.Module):
    """Records the first step of each run with a non-finite value, on the device and without waiting for it."""

    first_bad_step: Tensor
    """For each run, the first bad step, counted from 1; −1 if there has been none."""

    def __init__(self, n_runs: int) -> None:
        super().__init__()
        self.register_buffer("first_bad_step", torch.full((n_runs,), -1, dtype=torch.long))

    def check(self, values: Float[Tensor, "runs"], *, step: int) -> None:
        """Check one value of each run; `step` counts from 1, as in the history."""
        bad = ~torch.isfinite(values) & (self.first_bad_step < 0)
        self.first_bad_step = torch.where(bad, step, self.first_bad_step)
