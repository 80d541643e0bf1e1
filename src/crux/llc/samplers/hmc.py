"""Hamiltonian Monte Carlo: leapfrog steps of length √ε from a fresh momentum N(0, 1), accepted with probability min(1, e^−ΔH).

The steps of a move are shortened by a common random factor from [0.6, 1]. Otherwise a trajectory that returns to its start would leave
its direction unmixed (four steps at ε h = 2 do). A single leapfrog step is not shortened: it is the move of SGLD, w − ε/2 ∇U + √ε p,
and with acceptance it is the Metropolis-adjusted Langevin algorithm (MALA). Both leave the posterior invariant for every ε, so that
results are unbiased, but they need the same data in every step.

In whitened coordinates, all directions have the same curvature where the loss is quadratic: steps are √ε S p and the gradient is S ∇U
with S = H^(−1/2), H = nβ ∇²L + γ at w*. Directions whose curvatures differ by a factor of a million then mix equally fast, and ε is of
order 1.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from crux.llc.noise import Noise
from crux.llc.samplers.interface import ChainState, Posterior, start_state

MAX_SHORTENING = 0.4
"""Largest share by which the leapfrog steps of a move are shortened."""


class HMC:
    """Hamiltonian Monte Carlo with `leapfrogs` steps per move, optionally whitened by the full Hessian at w*."""

    corrected, max_scale = True, 1.0

    def __init__(self, *, leapfrogs: int, whitened: bool = False) -> None:
        self.leapfrogs, self.whitened = leapfrogs, whitened
        self.name = ("whitened " if whitened else "") + ("MALA" if leapfrogs == 1 else f"HMC({leapfrogs})")

    def start(self, w: Float[Tensor, "row n"], posterior: Posterior) -> ChainState:
        return start_state(w, posterior)

    def scale(self, state: ChainState, step: int) -> Float[Tensor, "row n"]:
        return torch.ones_like(state.w)

    def step(
        self, state: ChainState, step: int, *, posterior: Posterior, size: Float[Tensor, "row"], noise: Noise
    ) -> ChainState:
        step_length = size.sqrt()[:, None]
        if self.leapfrogs > 1:
            step_length = step_length * (1 - MAX_SHORTENING * noise.uniform_for_shortening(step)[:, None])
        w, loss, gradient = state.w, state.loss, state.gradient
        momentum = noise.normal(step)

        def whiten(v: Tensor) -> Tensor:
            if posterior.whitening is None:
                return v
            return (v.unflatten(0, (len(posterior.whitening), -1)) @ posterior.whitening).flatten(0, 1)

        before = posterior.energy(w, loss) + momentum.square().sum(1) / 2
        for _ in range(self.leapfrogs):
            momentum = momentum - step_length / 2 * whiten(posterior.energy_gradient(w, gradient))
            w = w + step_length * whiten(momentum)
            loss, gradient = posterior.loss_and_gradient(w, step)
            momentum = momentum - step_length / 2 * whiten(posterior.energy_gradient(w, gradient))
        after = posterior.energy(w, loss) + momentum.square().sum(1) / 2
        # a proposal with a non-finite energy is rejected
        probability = (before - after).exp().clamp(max=1).nan_to_num(0)
        accepted = noise.uniform(step) < probability
        return ChainState(
            torch.where(accepted[:, None], w, state.w),
            torch.where(accepted, loss, state.loss),
            torch.where(accepted[:, None], gradient, state.gradient),
            probability,
            None,
        )


MALA = HMC(leapfrogs=1)
"""The Metropolis-adjusted Langevin algorithm."""
