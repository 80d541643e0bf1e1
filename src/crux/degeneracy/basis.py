"""Bases for the activations at a hook point, and the baselines: neurons, principal components, a random rotation, a dictionary.

In a basis an activation f has the coordinates f̂ = (f − μ) C, and f ≈ μ + f̂ C⁺; vectors are rows, numbers are float64. The mean μ takes
the place of a constant coordinate 1, which is never mixed with the others. Directions are sorted by strength. Every function
that takes a `Basis` accepts all of these and the interaction basis.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.degeneracy.grams import Moments


class Basis(NamedTuple):
    """k directions at a hook point."""

    hook: str
    name: str
    """The kind of basis: `neuron`, `pca`, `random`, `sae`, `local`, `next-3`, `global`, ..."""
    mean: Float[Tensor, "d"]
    """μ."""
    C: Float[Tensor, "d k"]
    """Maps centred activations to coordinates."""
    C_pinv: Float[Tensor, "k d"]
    """C⁺: maps coordinates back. C⁺ C = I, except for a dictionary with more directions than dimensions."""
    strength: Float[Tensor, "k"]
    """Λ = E[f̂²], the variance of each coordinate, in descending order."""
    dropped: float
    """Share of the activations' variance in the dimensions that were left out because they hardly vary."""
    unused: float
    """Share of Σ Λ in the directions that were left out because hardly anything depends on them."""

    @property
    def size(self) -> int:
        """k, the number of directions."""
        return len(self.strength)

    @property
    def gaps(self) -> Float[Tensor, "gaps"]:
        """The relative gaps (Λ_j − Λ_j+1) / Λ_j between consecutive strengths.

        If a gap is within the estimation error, the two directions are determined only up to a rotation in their plane.
        """
        return 1 - self.strength[1:] / self.strength[:-1]

    @property
    def augmented(self) -> Float[Tensor, "d1 k1"]:
        """The matrix that maps (1, f) to (1, f̂)."""
        d, k = self.C.shape
        matrix = self.C.new_zeros(1 + d, 1 + k)
        matrix[0, 0], matrix[0, 1:], matrix[1:, 1:] = 1, -self.mean @ self.C, self.C
        return matrix

    def coordinates(self, f: Float[Tensor, "*at d"]) -> Float[Tensor, "*at k"]:
        """Return the coordinates f̂ = (f − μ) C."""
        return (f.double() - self.mean) @ self.C

    def activations(self, coordinates: Float[Tensor, "*at k"]) -> Float[Tensor, "*at d"]:
        """Return the activations μ + f̂ C⁺."""
        return self.mean + coordinates @ self.C_pinv

    def keep_strongest(self, f: Float[Tensor, "*at d"], n: int) -> Float[Tensor, "*at d"]:
        """Return the activations with all but the n strongest coordinates set to their mean, 0; in the dtype of f."""
        return (self.mean + (f.double() - self.mean) @ self.C[:, :n] @ self.C_pinv[:n]).to(f.dtype)

    def strongest(self, n: int) -> "Basis":
        """Return the basis of the n strongest directions."""
        return self._replace(C=self.C[:, :n], C_pinv=self.C_pinv[:n], strength=self.strength[:n])


def sort_by_strength(basis: Basis) -> Basis:
    """Sort the directions by descending strength, and choose each sign such that the largest entry of its column of C is positive."""
    order = basis.strength.argsort(descending=True, stable=True)
    C, C_pinv = basis.C[:, order], basis.C_pinv[order]
    largest = C.gather(0, C.abs().argmax(0, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(C)
    return basis._replace(C=C * sign, C_pinv=C_pinv * sign.T, strength=basis.strength[order])


def linear_basis(
    hook: str, name: str, moments: Moments, *, C: Float[Tensor, "d k"], C_pinv: Float[Tensor, "k d"]
) -> Basis:
    """Return the basis with these matrices, whose strengths are the variances of (f − μ) C."""
    strength = torch.einsum("dk,de,ek->k", C, moments.covariance, C)
    return sort_by_strength(Basis(hook, name, moments.mean, C, C_pinv, strength, 0.0, 0.0))


def neuron_basis(hook: str, moments: Moments) -> Basis:
    """Return the neurons as a basis, the one with the largest variance first."""
    eye = torch.eye(len(moments.mean)).to(moments.mean)
    return linear_basis(hook, "neuron", moments, C=eye, C_pinv=eye)


def random_basis(hook: str, moments: Moments, *, seed: int) -> Basis:
    """Return a uniformly random rotation as a basis."""
    d = len(moments.mean)
    drawn = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    Q, R = torch.linalg.qr(drawn)
    Q = (Q * R.diagonal().sign()).to(moments.mean)  # without these signs the rotation is not uniform
    return linear_basis(hook, "random", moments, C=Q, C_pinv=Q.T)


def dictionary_basis(hook: str, moments: Moments, *, directions: Float[Tensor, "k d"]) -> Basis:
    """Return decoder directions of an SAE as a basis, with the minimum-norm coefficients that reconstruct f: C = directions⁺.

    The coordinates are not the SAE's codes, which are sparse and not a linear function of f.

    Args:
        directions: all decoder directions, or some of them.
    """
    directions = directions.to(moments.mean)
    if not directions.any():
        raise UserError(f"{hook}: the basis is empty, because the dictionary has no non-zero direction")
    return linear_basis(hook, "sae", moments, C=torch.linalg.pinv(directions), C_pinv=directions)


def pca_basis(hook: str, moments: Moments, *, threshold: float) -> Basis:
    """Return the principal components as a basis, without those of variance below `threshold` × the largest."""
    values, U, dropped = varying_directions(hook, moments, threshold=threshold)
    return sort_by_strength(Basis(hook, "pca", moments.mean, U, U.T, values, dropped, 0.0))


def varying_directions(
    hook: str, moments: Moments, *, threshold: float
) -> tuple[Float[Tensor, "r"], Float[Tensor, "d r"], float]:
    """Return the variances and directions of the principal components above a threshold, and the share of variance in the others.

    Raises:
        UserError: if the activations do not vary.
    """
    values, U = torch.linalg.eigh(moments.covariance)
    values, U = values.flip(0).clamp(min=0), U.flip(1)
    scale = moments.gram.diagonal().max()
    if not values[0] > torch.finfo(values.dtype).eps * scale:
        raise UserError(f"{hook}: the basis is empty, because the activations do not vary")
    keep = values > threshold * values[0]
    return values[keep], U[:, keep], float(values[~keep].sum() / values.sum())
