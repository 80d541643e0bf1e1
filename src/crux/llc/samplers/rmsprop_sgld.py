"""RMSProp-SGLD: SGLD with a step size per coordinate from the running squared gradient (Hitchcock & Hoogland 2507.21449).

    V_t = α V_{t−1} + (1 − α) (∇L)²,  V_0 = 1,   G = 1 / (√(V_t / (1 − α^t)) + a)
    dw = −ε/2 G [nβ ∇L + γ (w − w*)] + N(0, ε G)

The term ∂G/∂w is neglected, because V changes slowly.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from crux.llc.noise import Noise
from crux.llc.samplers.interface import ChainState, Posterior, start_state


class RMSPropSGLD:
    """SGLD with a step size per coordinate; `decay` is α and `floor` is a."""

    decay: float
    floor: float
    name, corrected, whitened = "RMSProp-SGLD", False, False

    def __init__(self, *, decay: float, floor: float) -> None:
        self.decay, self.floor, self.max_scale = decay, floor, 1 / floor

    def start(self, w: Float[Tensor, "row n"], posterior: Posterior) -> ChainState:
        return start_state(w, posterior)._replace(second_moment=torch.ones_like(w))

    def scale(self, state: ChainState, step: int) -> Float[Tensor, "row n"]:
        """Return G after `step` updates of V."""
        assert state.second_moment is not None
        return 1 / ((state.second_moment / (1 - self.decay**step)).sqrt() + self.floor)

    def step(
        self, state: ChainState, step: int, *, posterior: Posterior, size: Float[Tensor, "row"], noise: Noise
    ) -> ChainState:
        assert state.second_moment is not None
        moment = self.decay * state.second_moment + (1 - self.decay) * state.gradient.square()
        sizes = size[:, None] * self.scale(state._replace(second_moment=moment), step)
        w = state.w - sizes / 2 * posterior.energy_gradient(state.w, state.gradient) + sizes.sqrt() * noise.normal(step)
        loss, gradient = posterior.loss_and_gradient(w, step)
        return ChainState(w, loss, gradient, state.acceptance, moment)


RMSPROP = RMSPropSGLD(decay=0.99, floor=0.1)
"""RMSProp-SGLD with the constants of devinterp."""
