"""Detection of losses and gradients that are not finite."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crux.config.errors import UserError


class NonFiniteLossError(UserError):
    """The error of a run whose loss or gradient is no longer finite; usually the learning rate is too high.

    Args:
        at: the steps, and the runs if there are several.
        no_tokens: True if the loss is a mean over no tokens, because all tokens of a batch were left out.
        kept: what is kept.
    """

    def __init__(self, *, at: str, no_tokens: bool, kept: str) -> None:
        if no_tokens:
            reason = (
                f"the loss had no token to count at {at}: loss.max_norm, with loss.skip_positions, left out every token of the "
                "batch; set a larger loss.max_norm (in units of the activation)"
            )
        else:
            reason = (
                f"the loss or its gradient stopped being a finite number at {at}; try a lower optimizer.lr, a lower "
                "optimizer.clip or loss.max_norm"
            )
        super().__init__(f"{reason} ({kept})")


class NonFiniteWatch(nn.Module):
    """Records the first step of each run with a non-finite value, on the device and without waiting for it."""

    first_bad_step: Tensor
    """For each run, the first bad step, counted from 1; −1 if there has been none."""
    no_tokens: Tensor
    """For each run, whether the loss had no token to count in a step up to the first bad one."""

    def __init__(self, n_runs: int) -> None:
        super().__init__()
        self.register_buffer("first_bad_step", torch.full((n_runs,), -1, dtype=torch.long))
        self.register_buffer("no_tokens", torch.zeros(n_runs, dtype=torch.bool))

    def check(self, values: Float[Tensor, "runs"], *, step: int) -> None:
        """Check one value of each run; `step` counts from 1, as in the history."""
        bad = ~torch.isfinite(values) & (self.first_bad_step < 0)
        self.first_bad_step = torch.where(bad, step, self.first_bad_step)

    def check_tokens(self, counted: Float[Tensor, "runs"]) -> None:
        """Check the number of tokens that the loss of each run counts, before its values are checked."""
        self.no_tokens = self.no_tokens | ((counted == 0) & (self.first_bad_step < 0))
