"""What is known of the loss around w* before a chain has moved: spectrum, gradient, and the noise of its minibatches."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.llc.coordinates import Coordinates
from crux.llc.hessian import FULL, Product, largest_eigenvalue, product_at, spectrum
from crux.llc.losses import Fixed, Loss, Minibatches, value, value_and_gradient

BATCHES = 32
"""Minibatches of each chain that the gradient's noise is measured on."""

SEED = 0
"""Of the random vectors: the same for everybody, they decide nothing."""


class Curvature(NamedTuple):
    """A row a case; float64 on the CPU."""

    values: Float[Tensor, "case k"]
    """Eigenvalues of the Hessian at w*, or of their quadrature."""
    weights: Float[Tensor, "case k"]
    """How many eigenvalues each stands for."""
    noise: Float[Tensor, "case k"]
    """Variance of a minibatch's gradient along each eigenvector; its mean over coordinates where those are not known."""
    gradient_norm: Float[Tensor, "case"]
    vectors: Float[Tensor, "case n n"] | None
    """Eigenvectors as columns, where all of the Hessian is known."""

    @property
    def exact(self) -> bool:
        return self.vectors is not None

    @property
    def largest(self) -> Float[Tensor, "case"]:
        return self.values.amax(1)


def curvature(
    loss: Loss,
    at: Coordinates,
    centre: Float[Tensor, "row n"],
    gradient_data: Fixed | Minibatches,
    evaluation_data: Fixed,
    rows: Sequence[tuple[int, int]],
    n_chains: int,
) -> Curvature:
    """On the gradient data where they are fixed, else on the evaluation data, which stand for what the minibatches are drawn from."""
    data = gradient_data if isinstance(gradient_data, Fixed) else evaluation_data
    found = spectrum(_product(loss, at, centre, data, rows), centre, rows_a_case=n_chains, seed=SEED)
    _, gradient = value_and_gradient(loss, at, centre, data.at(0, rows))
    noise = torch.zeros_like(found.values)
    if isinstance(gradient_data, Minibatches):
        sums, squares = 0.0, 0.0
        for step in range(BATCHES):
            _, g = value_and_gradient(loss, at, centre, gradient_data.at(step, rows))
            g = g.double().unflatten(0, (-1, n_chains))
            if found.vectors is not None:
                g = g @ found.vectors
            sums, squares = sums + g.sum(1), squares + g.square().sum(1)
        count = BATCHES * n_chains
        assert isinstance(sums, Tensor)
        assert isinstance(squares, Tensor)
        variance = (squares - sums.square() / count) / (count - 1)
        noise = variance if found.vectors is not None else variance.mean(1, keepdim=True).expand_as(found.values)
    return Curvature(
        found.values.cpu(),
        found.weights.cpu(),
        noise.cpu(),
        gradient[::n_chains].double().norm(dim=1).cpu(),
        None if found.vectors is None else found.vectors.cpu(),
    )


def whitened(
    found: Curvature, *, nbeta: Float[Tensor, "case"], gamma: Float[Tensor, "case"]
) -> Float[Tensor, "case n n"]:
    """H^(−1/2), H = nβ |∇²L| + γ: a saddle's falling directions count as if they rose.

    Eigenvalues below √h_max count as that: valleys are curved (weights are of order 1), and a move of s along one leaves its floor by
    about s² / 2, for which the steepest wall has room up to h_max^(−1/2). Flat directions mix more slowly for it, but cost nothing.

    Raises:
        UserError: where not all eigenvalues are known, or H has no inverse.
    """
    if found.vectors is None:
        raise UserError(f"a whitened sampler needs all of the Hessian, which is found for up to {FULL} coordinates")
    h = nbeta[:, None] * found.values.abs() + gamma[:, None]
    if not bool((h > 0).all()):
        raise UserError("a whitened sampler needs gamma above 0 where the loss has no curvature at w*")
    h = torch.maximum(h, h.amax(1, keepdim=True).sqrt())
    return (found.vectors / h.sqrt()[:, None]) @ found.vectors.mT


def stiffest_there(
    loss: Loss,
    at: Coordinates,
    w: Float[Tensor, "row n"],
    gradient_data: Fixed | Minibatches,
    evaluation_data: Fixed,
    rows: Sequence[tuple[int, int]],
) -> Float[Tensor, "row"]:
    """The largest eigenvalue of each chain's Hessian where it is now."""
    data = gradient_data if isinstance(gradient_data, Fixed) else evaluation_data
    return largest_eigenvalue(_product(loss, at, w, data, rows), w, seed=SEED).cpu()


def _product(
    loss: Loss, at: Coordinates, w: Float[Tensor, "row n"], data: Fixed, rows: Sequence[tuple[int, int]]
) -> Product:
    batch = data.at(0, rows)

    def gradient(w: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(value(loss, at, w, batch).sum(), w, create_graph=True)
        return found

    return product_at(gradient, w)
