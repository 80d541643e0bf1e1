"""Stochastic gradient Langevin dynamics: dw = −ε/2 [nβ ∇L + γ (w − w*)] + N(0, ε).

Every move is accepted, so that ε biases the result (prediction.py).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from crux.llc.noise import Noise
from crux.llc.samplers.interface import ChainState, Posterior, start_state


class SGLD:
    """Stochastic gradient Langevin dynamics with one step size."""

    name, corrected, whitened, max_scale = "SGLD", False, False, 1.0

    def start(self, w: Float[Tensor, "row n"], posterior: Posterior) -> ChainState:
        return start_state(w, posterior)

    def scale(self, state: ChainState, step: int) -> Float[Tensor, "row n"]:
        return torch.ones_like(state.w)

    def step(
        self, state: ChainState, step: int, *, posterior: Posterior, size: Float[Tensor, "row"], noise: Noise
    ) -> ChainState:
        drift = size[:, None] / 2 * posterior.energy_gradient(state.w, state.gradient)
        w = state.w - drift + size.sqrt()[:, None] * noise.normal(step)
        loss, gradient = posterior.loss_and_gradient(w, step)
        return ChainState(w, loss, gradient, state.acceptance, None)
