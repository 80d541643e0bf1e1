"""Hamiltonian Monte Carlo: some leapfrog steps of length √ε from a fresh momentum N(0, 1), then accepted with min(1, e^−ΔH).

The steps of a move are shortened by a common random factor from [0.6, 1]: a trajectory that comes back to where it began would leave
its direction unmixed (at ε h = 2, four steps do). A single leapfrog step is not shortened: it is the move of SGLD,
w − ε/2 ∇U + √ε p, and accepting it is the Metropolis-adjusted Langevin algorithm, MALA. Both leave the posterior as it is,
whatever ε: what they give is unbiased, and needs the same data in every step.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from crux.degeneracy.noise import Noise
from crux.degeneracy.samplers.interface import Posterior, State, begin

SHORTER = 0.4
"""The most that a trajectory's steps are shortened by."""


class HMC:
    """A move of `leapfrogs` steps."""

    corrected, stretch = True, 1.0

    def __init__(self, *, leapfrogs: int) -> None:
        self.leapfrogs = leapfrogs
        self.name = "MALA" if leapfrogs == 1 else f"HMC({leapfrogs})"

    def start(self, w: Float[Tensor, "row n"], posterior: Posterior) -> State:
        return begin(w, posterior)

    def scale(self, state: State, step: int) -> Float[Tensor, "row n"]:
        return torch.ones_like(state.w)

    def step(self, state: State, step: int, *, posterior: Posterior, size: Float[Tensor, "row"], noise: Noise) -> State:
        length = size.sqrt()[:, None]
        if self.leapfrogs > 1:
            length = length * (1 - SHORTER * noise.length(step)[:, None])
        w, loss, gradient = state.w, state.loss, state.gradient
        momentum = noise.normal(step)
        before = posterior.energy(w, loss) + momentum.square().sum(1) / 2
        for _ in range(self.leapfrogs):
            momentum = momentum - length / 2 * posterior.pull(w, gradient)
            w = w + length * momentum
            loss, gradient = posterior.loss(w, step)
            momentum = momentum - length / 2 * posterior.pull(w, gradient)
        after = posterior.energy(w, loss) + momentum.square().sum(1) / 2
        chance = (before - after).exp().clamp(max=1).nan_to_num(0)  # a proposal out of all bounds is refused
        taken = noise.uniform(step) < chance
        return State(
            torch.where(taken[:, None], w, state.w),
            torch.where(taken, loss, state.loss),
            torch.where(taken[:, None], gradient, state.gradient),
            chance,
            None,
        )


MALA = HMC(leapfrogs=1)
"""The Metropolis-adjusted Langevin algorithm."""
