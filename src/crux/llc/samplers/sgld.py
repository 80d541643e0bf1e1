"""Stochastic gradient Langevin dynamics: dw = −ε/2 [nβ ∇L + γ (w − w*)] + N(0, ε). Every move is taken, so ε biases it (predicted.py)."""

import torch
from jaxtyping import Float
from torch import Tensor

from crux.llc.noise import Noise
from crux.llc.samplers.interface import Posterior, State, begin


class SGLD:
    """The plain sampler."""

    name, corrected, whitened, stretch = "SGLD", False, False, 1.0

    def start(self, w: Float[Tensor, "row n"], posterior: Posterior) -> State:
        return begin(w, posterior)

    def scale(self, state: State, step: int) -> Float[Tensor, "row n"]:
        return torch.ones_like(state.w)

    def step(self, state: State, step: int, *, posterior: Posterior, size: Float[Tensor, "row"], noise: Noise) -> State:
        drift = size[:, None] / 2 * posterior.pull(state.w, state.gradient)
        w = state.w - drift + size.sqrt()[:, None] * noise.normal(step)
        loss, gradient = posterior.loss(w, step)
        return State(w, loss, gradient, state.acceptance, None)
