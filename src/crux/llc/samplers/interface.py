"""What a sampler is: it moves all chains by one step. What it samples: exp(−nβ L(w) − γ/2 ‖w − w*‖²), each row with its own nβ and γ."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from crux.llc.noise import Noise


class Posterior(NamedTuple):
    """The distribution, one row per chain."""

    centre: Float[Tensor, "row n"]
    """w*"""
    nbeta: Float[Tensor, "row"]
    gamma: Float[Tensor, "row"]
    loss: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    """(w, step) → L [row] and ∇L [row, n], on the data of that step."""
    whitening: Float[Tensor, "case n n"] | None = None
    """H^(−1/2) of each case's rows, H = nβ ∇²L + γ at w*, for a sampler that asks for it."""

    def pull(self, w: Float[Tensor, "row n"], gradient: Float[Tensor, "row n"]) -> Float[Tensor, "row n"]:
        """∇U = nβ ∇L + γ (w − w*)."""
        return self.nbeta[:, None] * gradient + self.gamma[:, None] * (w - self.centre)

    def energy(self, w: Float[Tensor, "row n"], loss: Float[Tensor, "row"]) -> Float[Tensor, "row"]:
        """U = nβ L + γ/2 ‖w − w*‖²."""
        return self.nbeta * loss + self.gamma / 2 * (w - self.centre).square().sum(1)


class State(NamedTuple):
    """Where the chains are."""

    w: Float[Tensor, "row n"]
    loss: Float[Tensor, "row"]
    """L(w) on the data of the last step."""
    gradient: Float[Tensor, "row n"]
    acceptance: Float[Tensor, "row"]
    """Probability with which the last move was accepted; 1 where none is refused."""
    second_moment: Float[Tensor, "row n"] | None
    """The gradient's running square, of a sampler that has one."""


@runtime_checkable
class Sampler(Protocol):
    """Moves all chains at once."""

    @property
    def name(self) -> str: ...

    @property
    def corrected(self) -> bool:
        """Whether moves are accepted or refused: no bias of the step size, and the same data in every step."""
        ...

    @property
    def whitened(self) -> bool:
        """Whether it moves in coordinates in which the posterior around w* is N(0, 1)."""
        ...

    @property
    def stretch(self) -> float:
        """The most that `scale` can be."""
        ...

    def start(self, w: Float[Tensor, "row n"], posterior: Posterior) -> State: ...

    def scale(self, state: State, step: int) -> Float[Tensor, "row n"]:
        """What ε is multiplied by for each coordinate, after so many steps."""
        ...

    def step(self, state: State, step: int, *, posterior: Posterior, size: Float[Tensor, "row"], noise: Noise) -> State:
        """The move of `step` (1, 2, …) with step size ε."""
        ...


def begin(w: Float[Tensor, "row n"], posterior: Posterior) -> State:
    """A state at w, on the data of step 0."""
    loss, gradient = posterior.loss(w, 0)
    return State(w, loss, gradient, loss.new_ones(len(w)), None)
