"""The sparsity coefficient λ: constant, or steered so that each SAE reaches a target L0."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

STEERING_START, RAMP_END, DAMPING_START, FREEZE_START = 0.1, 0.3, 0.5, 0.8
"""Shares of the steps after which λ begins to move, the wanted L0 has reached the target, damping of λ begins, and λ is frozen."""


class Steering(NamedTuple):
    """Settings of the controller that steers λ to a target L0."""

    target: float
    """The L0 to reach: mean number of non-zero latents per token."""
    max_steps: int


class Sparsity(nn.Module):
    """The coefficient λ of each SAE of a job, either constant or steered to a target L0.

    The controller compares the running mean of L0 over about the last ten steps with the wanted L0:

        e = log(L0 / wanted L0), clipped to ± MAX_ERROR
        log λ = log λ₀ + PROPORTIONAL_GAIN · w · e + INTEGRAL_GAIN · Σ w · e

    w is 1 for the first half of the steps and then falls to FINAL_GAIN when λ is frozen, so that λ does not oscillate at the end.

    The wanted L0 starts at the L0 that the run has after a tenth of the steps, and reaches the target at three tenths, linearly in
    log L0. Without this ramp, λ would rise as fast as possible, and JumpReLU's thresholds so far that no smaller λ brings them
    back. If L0 is below the target, the wanted L0 is the target from the start. For the last fifth of the steps λ is frozen at the
    running mean of log λ over a twentieth of the steps. The state of the controller is in buffers, so checkpoints contain it.
    """

    PROPORTIONAL_GAIN, INTEGRAL_GAIN, NEW_L0_WEIGHT, MAX_ERROR, FINAL_GAIN = 3.0, 0.08, 0.1, 0.5, 1 / 3

    weight: Tensor
    integral: Tensor
    log_first: Tensor
    log_l0: Tensor
    log_mean: Tensor
    start: Tensor

    def __init__(self, start: float | Sequence[float], *, n_saes: int, steering: Steering | None) -> None:
        """Create the coefficients; `start` is the initial λ, one for all SAEs or one per SAE."""
        super().__init__()
        self.steering = steering
        self.register_buffer("start", torch.tensor(start, dtype=torch.float).expand(n_saes).clone(), persistent=False)
        self.register_buffer("weight", self.start.clone())
        for name in ("integral", "log_first", "log_l0", "log_mean"):
            self.register_buffer(name, torch.zeros(n_saes))

    @torch.no_grad()
    def observe(self, l0: Float[Tensor, "n_saes"], *, step: int) -> None:
        """Record the L0 of optimiser step `step` (from 0) and update λ for the next step."""
        if self.steering is None:
            return
        steps, log_l0 = self.steering.max_steps, l0.clamp_min(1e-3).log()
        self.log_l0 = log_l0 if step == 0 else torch.lerp(self.log_l0, log_l0, self.NEW_L0_WEIGHT)
        if step < STEERING_START * steps:
            self.log_first = self.log_l0
        elif step >= FREEZE_START * steps:
            self.weight = self.start * self.log_mean.exp()
        else:
            damping = max(0.0, (step / steps - DAMPING_START) / (FREEZE_START - DAMPING_START))
            error = (self.log_l0 - self._wanted_log_l0(step / steps)).clamp(-self.MAX_ERROR, self.MAX_ERROR)
            error = error * (1 - (1 - self.FINAL_GAIN) * damping)
            self.integral += self.INTEGRAL_GAIN * error
            log_ratio = self.PROPORTIONAL_GAIN * error + self.integral
            self.log_mean = torch.lerp(self.log_mean, log_ratio, min(1.0, 20 / steps))  # over a twentieth of the steps
            self.weight = self.start * log_ratio.exp()

    def _wanted_log_l0(self, progress: float) -> Float[Tensor, "n_saes"]:
        """Return the log of the L0 that is wanted after this share of the steps."""
        assert self.steering is not None
        target = math.log(self.steering.target)
        remaining = max(0.0, (RAMP_END - progress) / (RAMP_END - STEERING_START))
        return target + remaining * (self.log_first - target).clamp_min(0)
