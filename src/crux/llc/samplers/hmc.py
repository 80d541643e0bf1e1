"""Hamiltonian Monte Carlo: some leapfrog steps of length √ε from a fresh momentum N(0, 1), then accepted with min(1, e^−ΔH).

The steps of a move are shortened by a common random factor from [0.6, 1]: a trajectory that comes back to where it began would leave
its direction unmixed (at ε h = 2, four steps do). A single leapfrog step is not shortened: it is the move of SGLD,
w − ε/2 ∇U + √ε p, and accepting it is the Metropolis-adjusted Langevin algorithm, MALA. Both leave the posterior as it is,
whatever ε: what they give is unbiased, and needs the same data in every step.

Whitened, all directions are as stiff as each other where the loss is quadratic: steps are √ε S p and the pull is S ∇U with S = H^(−1/2),
H = nβ ∇²L + γ at w*. A direction that is a million times softer than another is then mixed as fast; ε is of order 1.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from crux.llc.noise import Noise
from crux.llc.samplers.interface import Posterior, State, begin

SHORTER = 0.4
"""The most that a trajectory's steps are shortened by."""


class HMC:
    """A move of `leapfrogs` steps; `whitened` by all eigenvalues of the Hessian at w*, for as many coordinates as they are computed for."""

    corrected, stretch = True, 1.0

    def __init__(self, *, leapfrogs: int, whitened: bool = False) -> None:
        self.leapfrogs, self.whitened = leapfrogs, whitened
        self.name = ("whitened " if whitened else "") + ("MALA" if leapfrogs == 1 else f"HMC({leapfrogs})")

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

        def whiten(v: Tensor) -> Tensor:
            if posterior.whitening is None:
                return v
            return (v.unflatten(0, (len(posterior.whitening), -1)) @ posterior.whitening).flatten(0, 1)

        before = posterior.energy(w, loss) + momentum.square().sum(1) / 2
        for _ in range(self.leapfrogs):
            momentum = momentum - length / 2 * whiten(posterior.pull(w, gradient))
            w = w + length * whiten(momentum)
            loss, gradient = posterior.loss(w, step)
            momentum = momentum - length / 2 * whiten(posterior.pull(w, gradient))
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
