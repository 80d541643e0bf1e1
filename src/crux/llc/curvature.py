"""What is known of the loss around w* before a chain has moved: spectrum, gradient, and the noise of its minibatches."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.llc.hessian import FULL, largest_eigenvalue, spectrum
from crux.llc.landscape import Landscape
from crux.llc.losses import Minibatches, value_and_gradient

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


def curvature(landscape: Landscape) -> Curvature:
    """Return what is known of the loss around w* of each case, on the fixed data."""
    centre, n_chains = landscape.at.start(landscape.n_chains), landscape.n_chains
    found = spectrum(landscape.hessian_product(centre), centre, rows_a_case=n_chains, seed=SEED)
    data = landscape.fixed_data.at(0, landscape.rows)
    _, gradient = value_and_gradient(landscape.loss, landscape.at, centre, data)
    noise = torch.zeros_like(found.values)
    if isinstance(landscape.gradient_data, Minibatches):
        variance = _gradient_variance(landscape, centre, found.vectors)
        noise = variance if found.vectors is not None else variance.mean(1, keepdim=True).expand_as(found.values)
    return Curvature(
        found.values.cpu(),
        found.weights.cpu(),
        noise.cpu(),
        gradient[::n_chains].double().norm(dim=1).cpu(),
        None if found.vectors is None else found.vectors.cpu(),
    )


def _gradient_variance(
    landscape: Landscape, w: Float[Tensor, "row n"], vectors: Float[Tensor, "case n n"] | None
) -> Float[Tensor, "case n"]:
    """Return the variance of the minibatches' gradients, along the eigenvectors if they are known, else along the coordinates."""
    n = landscape.n_chains
    sums, squares = 0.0, 0.0
    for step in range(BATCHES):
        _, g = landscape.gradient(w, step)
        g = g.double().unflatten(0, (-1, n))
        if vectors is not None:
            g = g @ vectors
        sums, squares = sums + g.sum(1), squares + g.square().sum(1)
    count = BATCHES * n
    assert isinstance(sums, Tensor)
    assert isinstance(squares, Tensor)
    return (squares - sums.square() / count) / (count - 1)


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


def stiffest_there(landscape: Landscape, w: Float[Tensor, "row n"]) -> Float[Tensor, "row"]:
    """Return the largest eigenvalue of each chain's Hessian where it is now."""
    return largest_eigenvalue(landscape.hessian_product(w), w, seed=SEED).cpu()
