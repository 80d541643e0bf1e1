"""p-annealing: an L1 penalty that becomes an Lp one, p < 1, in the course of the training (Karvonen et al. 2408.00113, §4)."""

from typing import ClassVar, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.relu import ReluSAE
from crux.sae.architectures.sae import BaseArguments, Codes, convert_sae, mean_over_tokens, update_running_mean

EPSILON = 1e-3
"""Codes far below it (in units of the scaled input) are penalised as by L1: the gradient stays under p · ε^(p−1)."""


def lp_penalty(c: Float[Tensor, "tokens n_latents"], p: float) -> Float[Tensor, "tokens"]:
    """Σ over latents of (c + ε)ᵖ − εᵖ: Σ c where p is 1, and zero for a latent that does not fire."""
    if p == 1:
        return c.sum(-1)
    return (c / EPSILON).add_(1).pow(p).sub_(1).sum(-1) * EPSILON**p


class PAnnealSAE(ReluSAE):
    """ReLU with the penalty scale · Σ cᵖ / d_model.

    p is 1 until `p_start` and then goes down to `p_end`, in steps held for equal shares of the training up to
    `p_stop`; the last of them is held from there on.
    At each step down, `scale` is multiplied with the ratio of Σ cᵖ under the old p to that under the new one, of the means
    over about the last ten batches, so that the penalty goes on where it was.

    Args:
        p_end: the last p, above 0, below 1.
        p_start: share of the training after which p leaves 1.
        p_stop: share of it after which p moves no more.
        p_updates: how many values p takes below 1; not more than there are training steps for them.
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
            raise UserError(
                f"p_start and p_stop are shares of the training, one after the other, not {p_start} and {p_stop}"
            )
        if p_updates < 1:
            raise UserError(f"p_updates must be at least 1, not {p_updates}")
        self.p_end, self.p_start, self.p_stop, self.p_updates = p_end, p_start, p_stop, p_updates
        self._stage = 0  # the buffer's value where the host can read it; set before every step
        self.register_buffer("stage", torch.zeros((), dtype=torch.long))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("sums", torch.zeros(2))
        self.register_buffer("observed_n", torch.zeros((), dtype=torch.long))

    def p(self, stage: int) -> float:
        """1 at stage 0, `p_end` at stage `p_updates`."""
        return 1 - (1 - self.p_end) * stage / self.p_updates

    def penalty(self, codes: Codes, *, weight: Float[Tensor, "tokens"] | None) -> Float[Tensor, ""]:
        """scale · mean over tokens of Σ cᵖ / d_model: the ReLU SAE's as long as p is 1."""
        return self.scale * mean_over_tokens(lp_penalty(codes.c, self.p(self._stage)), weight) / self.d_model

    @torch.no_grad()
    def observe(self, codes: Codes) -> None:
        if self._stage == self.p_updates:
            return
        sums = torch.stack([lp_penalty(codes.c, self.p(self._stage + step)).mean() for step in (0, 1)])
        self.sums = update_running_mean(self.sums, sums, n=self.observed_n, at_least=0.1)
        self.observed_n = self.observed_n + 1

    @torch.no_grad()
    def advance(self, progress: float) -> None:
        share = (progress - self.p_start) / (self.p_stop - self.p_start)
        self._stage = 0 if share < 0 else min(1 + int(share * self.p_updates), self.p_updates)
        steps_down = (self.stage != self._stage) & (self.sums[1] > 0)
        self.scale = torch.where(steps_down, self.scale * self.sums[0] / self.sums[1], self.scale)
        self.observed_n = torch.where(self.stage != self._stage, 0, self.observed_n)
        self.stage = torch.full_like(self.stage, self._stage)

    @torch.no_grad()
    def fold(self) -> ReluSAE:
        return convert_sae(ReluSAE, super().fold())
