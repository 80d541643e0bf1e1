"""The loss around w* before any chain moves: spectrum of the Hessian, gradient, and minibatch noise."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.llc.hessian import MAX_DENSE, estimate_spectrum, largest_eigenvalue
from crux.llc.landscape import Landscape
from crux.llc.losses import Minibatches, compute_loss_and_gradient

N_MINIBATCHES = 32
"""Minibatches per chain from which the gradient noise is measured."""

SEED = 0
"""Seed of the random start vectors; results do not depend on it beyond the quadrature's error."""


class Curvature(NamedTuple):
    """Spectrum, gradient and noise at w*, one row per case; float64 on the CPU."""

    values: Float[Tensor, "case k"]
    """Eigenvalues of the Hessian at w*, or the nodes of a quadrature over them."""
    weights: Float[Tensor, "case k"]
    """Number of eigenvalues that each value represents."""
    noise: Float[Tensor, "case k"]
    """Variance of a minibatch's gradient along each eigenvector; if the eigenvectors are unknown, its mean over coordinates."""
    gradient_norm: Float[Tensor, "case"]
    vectors: Float[Tensor, "case n n"] | None
    """Eigenvectors as columns, if the full Hessian was computed."""

    @property
    def exact(self) -> bool:
        """True if `values` are all eigenvalues."""
        return self.vectors is not None

    @property
    def largest(self) -> Float[Tensor, "case"]:
        return self.values.amax(1)


def measure_curvature(landscape: Landscape) -> Curvature:
    """Measure the loss around w* of each case on the fixed data."""
    centre, n_chains = landscape.coordinates.start(landscape.n_chains), landscape.n_chains
    spectrum = estimate_spectrum(landscape.hessian_product(centre), centre, rows_per_case=n_chains, seed=SEED)
    data = landscape.fixed_data.get_batch(0, landscape.rows)
    _, gradient = compute_loss_and_gradient(landscape.loss, landscape.coordinates, centre, data)
    noise = torch.zeros_like(spectrum.values)
    if isinstance(landscape.gradient_data, Minibatches):
        variance = _measure_gradient_variance(landscape, centre, spectrum.vectors)
        noise = variance if spectrum.vectors is not None else variance.mean(1, keepdim=True).expand_as(spectrum.values)
    return Curvature(
        spectrum.values.cpu(),
        spectrum.weights.cpu(),
        noise.cpu(),
        gradient[::n_chains].double().norm(dim=1).cpu(),  # all chains of a case are at the same w*
        None if spectrum.vectors is None else spectrum.vectors.cpu(),
    )


def _measure_gradient_variance(
    landscape: Landscape, w: Float[Tensor, "row n"], vectors: Float[Tensor, "case n n"] | None
) -> Float[Tensor, "case n"]:
    """Return the variance of minibatch gradients along the eigenvectors if they are known, else along the coordinates."""
    n = landscape.n_chains
    sums, squares = 0.0, 0.0
    for step in range(N_MINIBATCHES):
        _, g = landscape.gradient(w, step)
        g = g.double().unflatten(0, (-1, n))  # cases, chains, coordinates
        if vectors is not None:
            g = g @ vectors
        sums, squares = sums + g.sum(1), squares + g.square().sum(1)
    count = N_MINIBATCHES * n
    assert isinstance(sums, Tensor)
    assert isinstance(squares, Tensor)
    return (squares - sums.square() / count) / (count - 1)


def compute_whitening(
    curvature: Curvature, *, nbeta: Float[Tensor, "case"], gamma: Float[Tensor, "case"]
) -> Float[Tensor, "case n n"]:
    """Return H^(−1/2) with H = nβ |∇²L| + γ, where negative eigenvalues of ∇²L count with their absolute value.

    Eigenvalues h below √h_max are replaced by √h_max. Valleys of the loss are curved (weights are of order 1): a move of length s
    along a valley leaves its floor by about s² / 2, which the steepest direction allows only up to h_max^(−1/2). Flat directions
    mix more slowly as a result, but contribute nothing to the estimate.

    Raises:
        UserError: if not all eigenvalues are known, or H is singular.
    """
    if curvature.vectors is None:
        raise UserError(
            f"a whitened sampler needs the full Hessian, which is computed for up to {MAX_DENSE} coordinates"
        )
    h = nbeta[:, None] * curvature.values.abs() + gamma[:, None]
    if not bool((h > 0).all()):
        raise UserError("a whitened sampler needs gamma > 0 if the loss has directions without curvature at w*")
    h = torch.maximum(h, h.amax(1, keepdim=True).sqrt())
    return (curvature.vectors / h.sqrt()[:, None]) @ curvature.vectors.mT


def largest_curvature(landscape: Landscape, w: Float[Tensor, "row n"]) -> Float[Tensor, "row"]:
    """Return the largest eigenvalue of each chain's Hessian at w."""
    return largest_eigenvalue(landscape.hessian_product(w), w, seed=SEED).cpu()
