"""The interface of samplers, which move all chains by one step, and the posterior exp(−nβ L(w) − γ/2 ‖w − w*‖²) that they sample."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from crux.llc.noise import Noise


class Posterior(NamedTuple):
    """The distribution that is sampled, with one row per chain."""

    centre: Float[Tensor, "row n"]
    """The centre w*."""
    nbeta: Float[Tensor, "row"]
    gamma: Float[Tensor, "row"]
    loss_and_gradient: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    """(w, step) → L [row] and ∇L [row, n] on the data of that step."""
    whitening: Float[Tensor, "case n n"] | None = None
    """H^(−1/2) of each case, with H = nβ ∇²L + γ at w*; only for whitened samplers."""

    def energy_gradient(self, w: Float[Tensor, "row n"], gradient: Float[Tensor, "row n"]) -> Float[Tensor, "row n"]:
        """Return ∇U = nβ ∇L + γ (w − w*)."""
        return self.nbeta[:, None] * gradient + self.gamma[:, None] * (w - self.centre)

    def energy(self, w: Float[Tensor, "row n"], loss: Float[Tensor, "row"]) -> Float[Tensor, "row"]:
        """Return U = nβ L + γ/2 ‖w − w*‖²."""
        return self.nbeta * loss + self.gamma / 2 * (w - self.centre).square().sum(1)


class ChainState(NamedTuple):
    """The current state of all chains."""

    w: Float[Tensor, "row n"]
    loss: Float[Tensor, "row"]
    """L(w) on the data of the last step."""
    gradient: Float[Tensor, "row n"]
    acceptance: Float[Tensor, "row"]
    """Probability of accepting the last move; 1 for samplers that accept every move."""
    second_moment: Float[Tensor, "row n"] | None
    """Running mean of the squared gradient, for samplers that use one."""


@runtime_checkable
class Sampler(Protocol):
    """A method of moving all chains by one step."""

    @property
    def name(self) -> str:
        """Name of the sampler in reports."""
        ...

    @property
    def corrected(self) -> bool:
        """True if moves are accepted or rejected (Metropolis): no step-size bias, but the same data is needed in every step."""
        ...

    @property
    def whitened(self) -> bool:
        """True if it moves in coordinates in which the posterior around w* is N(0, 1)."""
        ...

    @property
    def max_scale(self) -> float:
        """Upper bound on `scale`."""
        ...

    def start(self, w: Float[Tensor, "row n"], posterior: Posterior) -> ChainState:
        """Return the state before the first step."""
        ...

    def scale(self, state: ChainState, step: int) -> Float[Tensor, "row n"]:
        """Return the factor on ε for each coordinate after `step` steps."""
        ...

    def step(
        self, state: ChainState, step: int, *, posterior: Posterior, size: Float[Tensor, "row"], noise: Noise
    ) -> ChainState:
        """Make move number `step` (1, 2, …) with step size `size` = ε."""
        ...


def start_state(w: Float[Tensor, "row n"], posterior: Posterior) -> ChainState:
    """Return a state at w, with loss and gradient on the data of step 0."""
    loss, gradient = posterior.loss_and_gradient(w, 0)
    return ChainState(w, loss, gradient, loss.new_ones(len(w)), None)
