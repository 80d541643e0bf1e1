"""The loss that chains move on: its values and gradients for every chain, on the data that they see."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.llc.coordinates import Coordinates
from crux.llc.hessian import Product, product_at
from crux.llc.losses import Fixed, Loss, Minibatches, value, value_and_gradient


class Landscape(NamedTuple):
    """A loss, its data, and the chains: row r is chain r mod n_chains of case r div n_chains."""

    loss: Loss
    at: Coordinates
    gradient_data: Fixed | Minibatches
    """What the chains follow the gradient of."""
    evaluation_data: Fixed
    """What L(w) and L(w*) are measured on."""
    rows: Sequence[tuple[int, int]]
    """Seed and number of each chain."""
    n_chains: int
    """Chains per case."""

    @property
    def same_data(self) -> bool:
        """Whether the chains move on the very data that the loss is measured on."""
        return isinstance(self.gradient_data, Fixed) and self.gradient_data.batch is self.evaluation_data.batch

    @property
    def fixed_data(self) -> Fixed:
        """The gradient data if they are fixed, else the evaluation data, which stand for what the minibatches are drawn from."""
        return self.gradient_data if isinstance(self.gradient_data, Fixed) else self.evaluation_data

    def gradient(self, w: Float[Tensor, "row n"], step: int) -> tuple[Float[Tensor, "row"], Float[Tensor, "row n"]]:
        """Return L and ∇L of every chain, on the gradient data of a step."""
        return value_and_gradient(self.loss, self.at, w, self.gradient_data.at(step, self.rows))

    @torch.no_grad()
    def evaluate(self, w: Float[Tensor, "row n"]) -> Float[Tensor, "row"]:
        """Return L of every chain on the evaluation data."""
        return value(self.loss, self.at, w, self.evaluation_data.at(0, self.rows))

    def hessian_product(self, w: Float[Tensor, "row n"]) -> Product:
        """Return v → H v at w, of every chain's loss on the fixed data."""
        batch = self.fixed_data.at(0, self.rows)

        def gradient(w: Tensor) -> Tensor:
            (g,) = torch.autograd.grad(value(self.loss, self.at, w, batch).sum(), w, create_graph=True)
            return g

        return product_at(gradient, w)
