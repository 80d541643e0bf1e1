"""The loss that the chains explore: its values, gradients and Hessian products for every chain."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.llc.coordinates import Coordinates
from crux.llc.hessian import Product, make_hessian_product
from crux.llc.losses import ChainLoss, FixedData, Minibatches, compute_loss, compute_loss_and_gradient


class Landscape(NamedTuple):
    """A loss, its data, and the chains; row r is chain r mod n_chains of case r div n_chains."""

    loss: ChainLoss
    coordinates: Coordinates
    gradient_data: FixedData | Minibatches
    """Data on which the chains' gradients are computed."""
    evaluation_data: FixedData
    """Data on which L(w) and L(w*) are computed."""
    rows: Sequence[tuple[int, int]]
    """Seed of the case and index of the chain, for each row."""
    n_chains: int
    """Chains per case."""

    @property
    def same_data(self) -> bool:
        """True if gradients and losses are computed on the same fixed data."""
        return isinstance(self.gradient_data, FixedData) and self.gradient_data.batch is self.evaluation_data.batch

    @property
    def fixed_data(self) -> FixedData:
        """The gradient data if they are fixed; otherwise the evaluation data, as a stand-in for the minibatches' source."""
        return self.gradient_data if isinstance(self.gradient_data, FixedData) else self.evaluation_data

    def gradient(self, w: Float[Tensor, "row n"], step: int) -> tuple[Float[Tensor, "row"], Float[Tensor, "row n"]]:
        """Compute L and ∇L of every chain on the gradient data of a step."""
        return compute_loss_and_gradient(self.loss, self.coordinates, w, self.gradient_data.get_batch(step, self.rows))

    @torch.no_grad()
    def evaluate(self, w: Float[Tensor, "row n"]) -> Float[Tensor, "row"]:
        """Compute L of every chain on the evaluation data."""
        return compute_loss(self.loss, self.coordinates, w, self.evaluation_data.get_batch(0, self.rows))

    def hessian_product(self, w: Float[Tensor, "row n"]) -> Product:
        """Return the function v → H v at w, with H the Hessian of every chain's loss on the fixed data."""
        batch = self.fixed_data.get_batch(0, self.rows)

        def gradient(w: Tensor) -> Tensor:
            (g,) = torch.autograd.grad(compute_loss(self.loss, self.coordinates, w, batch).sum(), w, create_graph=True)
            return g

        return make_hessian_product(gradient, w)
