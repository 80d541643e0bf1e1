"""The sparsity coefficient λ: given, or steered until each SAE fires as many latents a token as was asked for."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

FROM, THERE, CALMER, UNTIL = 0.1, 0.3, 0.5, 0.8
"""Shares of the steps at which λ begins to move, L0 is to be at its target, λ begins to calm down, and λ is frozen."""


class Steering(NamedTuple):
    """How λ is led to a target L0."""

    target: float
    """Mean non-zero latents a token."""
    max_steps: int


class Sparsity(nn.Module):
    """λ of each SAE of a run.

    Steered, log λ follows e = log(L0 / wanted) of the running mean over about the last ten steps, clipped to ± CLIP:

        log λ = log λ₀ + PROPORTIONAL · w · e + INTEGRAL · Σ w · e

    with w = 1 for the first half of the steps, and then down to CALM where λ is frozen: λ must not swing then.

    What is wanted glides, on a line in log L0, from the L0 that the run has after a tenth of the steps down to the target at three
    tenths: a λ that rises as fast as it can raises JumpReLU's thresholds so far that no smaller λ brings them back. An L0 below
    the target is led up at once. For the last fifth of the steps λ is frozen at the running mean of log λ over a twentieth of
    them. All of the controller's state is in buffers, so in the checkpoint.
    """

    PROPORTIONAL, INTEGRAL, MEMORY, CLIP, CALM = 3.0, 0.08, 0.1, 0.5, 1 / 3

    weight: Tensor
    integral: Tensor
    log_first: Tensor
    log_l0: Tensor
    log_mean: Tensor
    start: Tensor

    def __init__(self, start: float | Sequence[float], *, n_saes: int, steering: Steering | None) -> None:
        """`start` is λ at first: one for all SAEs, or one each."""
        super().__init__()
        self.steering = steering
        self.register_buffer("start", torch.tensor(start, dtype=torch.float).expand(n_saes).clone(), persistent=False)
        self.register_buffer("weight", self.start.clone())
        for name in ("integral", "log_first", "log_l0", "log_mean"):
            self.register_buffer(name, torch.zeros(n_saes))

    @torch.no_grad()
    def observe(self, l0: Float[Tensor, "n_saes"], *, step: int) -> None:
        """Takes in the L0 of optimiser step `step` (from 0) and moves λ for the next one."""
        if self.steering is None:
            return
        steps, log_l0 = self.steering.max_steps, l0.clamp_min(1e-3).log()
        self.log_l0 = log_l0 if step == 0 else torch.lerp(self.log_l0, log_l0, self.MEMORY)
        if step < FROM * steps:
            self.log_first = self.log_l0
        elif step >= UNTIL * steps:
            self.weight = self.start * self.log_mean.exp()
        else:
            calm = max(0.0, (step / steps - CALMER) / (UNTIL - CALMER))
            error = (self.log_l0 - self._wanted(step / steps)).clamp(-self.CLIP, self.CLIP)
            error = error * (1 - (1 - self.CALM) * calm)
            self.integral += self.INTEGRAL * error
            log_ratio = self.PROPORTIONAL * error + self.integral
            self.log_mean = torch.lerp(self.log_mean, log_ratio, min(1.0, 20 / steps))
            self.weight = self.start * log_ratio.exp()

    def _wanted(self, progress: float) -> Float[Tensor, "n_saes"]:
        """log of the L0 that is wanted when that share of the steps is done."""
        assert self.steering is not None
        target, left = math.log(self.steering.target), max(0.0, (THERE - progress) / (THERE - FROM))
        return target + left * (self.log_first - target).clamp_min(0)
