"""The sparsity coefficient λ: given, or steered until each SAE fires as many latents a token as was asked for."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

FROM, UNTIL = 0.1, 0.8
"""Shares of the steps between which λ moves: the first fall of L0 is left alone; what comes out is trained under one λ."""


class Steering(NamedTuple):
    """How λ is led to a target L0."""

    target: float
    """Mean non-zero latents a token."""
    max_steps: int


class Sparsity(nn.Module):
    """λ of each SAE of a run.

    Steered, log λ follows e = log(L0 / target) of the running mean over about the last ten steps, clipped to ± CLIP:

        log λ = log λ₀ + PROPORTIONAL · e + RATE / max_steps · Σ e

    from the first tenth of the steps to the last fifth, where λ is frozen at the running mean of log λ over a twentieth of the
    steps. All of the controller's state is in buffers, so in the checkpoint.
    """

    PROPORTIONAL, RATE, MEMORY, CLIP = 3.0, 10.0, 0.1, 0.5

    weight: Tensor
    integral: Tensor
    log_l0: Tensor
    log_mean: Tensor
    start: Tensor

    def __init__(self, start: float | Sequence[float], *, n_saes: int, steering: Steering | None) -> None:
        """`start` is λ at first: one for all SAEs, or one each."""
        super().__init__()
        self.steering = steering
        self.register_buffer("start", torch.tensor(start, dtype=torch.float).expand(n_saes).clone(), persistent=False)
        self.register_buffer("weight", self.start.clone())
        for name in ("integral", "log_l0", "log_mean"):
            self.register_buffer(name, torch.zeros(n_saes))

    @torch.no_grad()
    def observe(self, l0: Float[Tensor, "n_saes"], *, step: int) -> None:
        """Takes in the L0 of optimiser step `step` (from 0) and moves λ for the next one."""
        if self.steering is None:
            return
        steps, log_l0 = self.steering.max_steps, l0.clamp_min(1e-3).log()
        self.log_l0 = log_l0 if step == 0 else torch.lerp(self.log_l0, log_l0, self.MEMORY)
        if step >= UNTIL * steps:
            self.weight = self.start * self.log_mean.exp()
        elif step >= FROM * steps:
            error = (self.log_l0 - math.log(self.steering.target)).clamp(-self.CLIP, self.CLIP)
            self.integral += error * (self.RATE / steps)
            log_ratio = self.PROPORTIONAL * error + self.integral
            self.log_mean = torch.lerp(self.log_mean, log_ratio, min(1.0, 20 / steps))
            self.weight = self.start * log_ratio.exp()
