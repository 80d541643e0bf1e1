"""p-annealing: a penalty that changes from L1 to Lp with p < 1 during training (Karvonen et al. 2408.00113, §4)."""

from functools import partial
from typing import ClassVar, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.codes import Codes
from crux.sae.architectures.means import mean_over_tokens, update_running_mean
from crux.sae.architectures.relu import ReluSAE
from crux.sae.architectures.sae import BaseArguments, convert_sae

EPSILON = 1e-3
"""The ε of `lp_penalty`, in units of the scaled input. Far below ε, codes are penalised as by L1; the gradient is at most p · ε^(p−1)."""


def lp_penalty(c: Float[Tensor, "*codes"], p: float) -> Float[Tensor, "*codes"]:
    """Return (c + ε)ᵖ − εᵖ of each code, which is zero for a latent that does not fire, and c if p is 1."""
    return c if p == 1 else (c / EPSILON).add_(1).pow(p).sub_(1) * EPSILON**p


class PAnnealSAE(ReluSAE):
    """A ReLU SAE with the penalty scale · Σ cᵖ / d_model, whose p falls during training (Karvonen et al. 2408.00113, §4).

    p is 1 until `p_start`. Then it falls in `p_updates` equal steps, which last equally long, to `p_end` at `p_stop`, and
    stays there. At each step, `scale` is multiplied by Σ cᵖ with the old p divided by Σ cᵖ with the new p (means over about
    the last ten batches), so that the penalty does not jump.

    Args:
        p_end: the last p, between 0 and 1.
        p_start: share of the training steps after which p begins to fall.
        p_stop: share of the training steps after which p stays constant.
        p_updates: number of values below 1 that p takes; at most one per training step.
    """

    RUNNING_MEANS: ClassVar[tuple[str, ...]] = ("sums",)

    scale: Float[Tensor, ""]
    stage: Int[Tensor, ""]
    sums: Float[Tensor, "2"]
    observed_n: Int[Tensor, ""]

    def __init__(
        self, *, p_end: float, p_start: float, p_stop: float, p_updates: int, **base: Unpack[BaseArguments]
    ) -> None:
        super().__init__(**base)
        if not 0 < p_end < 1:
            raise UserError(f"p_end must lie between 0 and 1, not be {p_end}")
        if not 0 <= p_start < p_stop <= 1:
            raise UserError(f"p_start must be less than p_stop, both between 0 and 1, not {p_start} and {p_stop}")
        if p_updates < 1:
            raise UserError(f"p_updates must be at least 1, not {p_updates}")
        self.p_end, self.p_start, self.p_stop, self.p_updates = p_end, p_start, p_stop, p_updates
        self._stage = 0  # the value of the buffer `stage`, on the host; `advance` sets it before every step
        self.register_buffer("stage", torch.zeros((), dtype=torch.long))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("sums", torch.zeros(2))
        self.register_buffer("observed_n", torch.zeros((), dtype=torch.long))

    def p(self, stage: int) -> float:
        """Return p at a stage: 1 at stage 0, `p_end` at stage `p_updates`."""
        return 1 - (1 - self.p_end) * stage / self.p_updates

    def penalty(self, codes: Codes, *, weight: Float[Tensor, "tokens"] | None) -> Float[Tensor, ""]:
        """Return scale · mean over tokens of Σ cᵖ / d_model, which is the penalty of ReLU SAEs as long as p is 1."""
        return self.scale * mean_over_tokens(self._sum(codes, self._stage), weight) / self.d_model

    def _sum(self, codes: Codes, stage: int) -> Float[Tensor, "tokens"]:
        """Return Σ cᵖ of each token, with the p of a stage."""
        return codes.sum_of(partial(lp_penalty, p=self.p(stage)))

    @torch.no_grad()
    def observe(self, codes: Codes) -> None:
        if self._stage == self.p_updates:
            return
        sums = torch.stack([self._sum(codes, self._stage + step).mean() for step in (0, 1)])
        self.sums = update_running_mean(self.sums, sums, n=self.observed_n, at_least=0.1)
        self.observed_n = self.observed_n + 1

    @torch.no_grad()
    def advance(self, progress: float) -> None:
        # progress between p_start and p_stop, from 0 to 1; the first stage begins right at p_start
        share = (progress - self.p_start) / (self.p_stop - self.p_start)
        self._stage = 0 if share < 0 else min(1 + int(share * self.p_updates), self.p_updates)
        steps_down = (self.stage != self._stage) & (self.sums[1] > 0)
        self.scale = torch.where(steps_down, self.scale * self.sums[0] / self.sums[1], self.scale)
        self.observed_n = torch.where(self.stage != self._stage, 0, self.observed_n)
        self.stage = torch.full_like(self.stage, self._stage)

    @torch.no_grad()
    def fold(self) -> ReluSAE:
        return convert_sae(ReluSAE, super().fold())
