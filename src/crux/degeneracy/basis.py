"""Coordinates for the activations at a hook point, and the plain ones: neurons, principal components, a random rotation, a dictionary.

f̂ = (f − μ) C and f ≈ μ + f̂ C⁺, row vectors, float64. A constant coordinate 1 stands beside f̂ by itself and is never mixed with it: it is
the mean, and carries what biases would. Directions are sorted by their strength; whatever takes a `Basis` takes any of these.
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
    """What made it: `neuron`, `pca`, `random`, `sae`, `local`, `next-3`, `global`, ..."""
    mean: Float[Tensor, "d"]
    """μ."""
    C: Float[Tensor, "d k"]
    """To coordinates."""
    C_pinv: Float[Tensor, "k d"]
    """C⁺, back; C⁺ C = I but for a dictionary, which may have more directions than there are dimensions."""
    strength: Float[Tensor, "k"]
    """Λ, sorted; E f̂², the variance of each coordinate."""
    dropped: float
    """Share of the activations' variance in dimensions that were left out because they hardly vary."""
    unused: float
    """Share of Σ Λ in directions that were left out because hardly anything depends on them."""

    @property
    def size(self) -> int:
        """k."""
        return len(self.strength)

    @property
    def gaps(self) -> Float[Tensor, "gaps"]:
        """(Λ_j − Λ_j+1) / Λ_j. Where one is within the estimate's error, the two directions are arbitrary in the plane that they span."""
        return 1 - self.strength[1:] / self.strength[:-1]

    @property
    def augmented(self) -> Float[Tensor, "d1 k1"]:
        """(1, f) → (1, f̂), as one matrix."""
        d, k = self.C.shape
        found = self.C.new_zeros(1 + d, 1 + k)
        found[0, 0], found[0, 1:], found[1:, 1:] = 1, -self.mean @ self.C, self.C
        return found

    def coordinates(self, f: Float[Tensor, "*at d"]) -> Float[Tensor, "*at k"]:
        """f̂."""
        return (f.double() - self.mean) @ self.C

    def activations(self, coordinates: Float[Tensor, "*at k"]) -> Float[Tensor, "*at d"]:
        """μ + f̂ C⁺."""
        return self.mean + coordinates @ self.C_pinv

    def kept(self, f: Float[Tensor, "*at d"], n: int) -> Float[Tensor, "*at d"]:
        """The activations with all but the first n coordinates at their mean, which is 0; in the activations' own type."""
        return (self.mean + (f.double() - self.mean) @ self.C[:, :n] @ self.C_pinv[:n]).to(f.dtype)

    def first(self, n: int) -> "Basis":
        """The n strongest directions."""
        return self._replace(C=self.C[:, :n], C_pinv=self.C_pinv[:n], strength=self.strength[:n])


def sorted_by_strength(basis: Basis) -> Basis:
    """Its directions by falling strength, each with the sign that makes its largest entry in C positive."""
    order = basis.strength.argsort(descending=True, stable=True)
    C, C_pinv = basis.C[:, order], basis.C_pinv[order]
    largest = C.gather(0, C.abs().argmax(0, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(C)
    return basis._replace(C=C * sign, C_pinv=C_pinv * sign.T, strength=basis.strength[order])


def linear_basis(
    hook: str, name: str, moments: Moments, *, C: Float[Tensor, "d k"], C_pinv: Float[Tensor, "k d"]
) -> Basis:
    """The coordinates f @ C, with the strength that the data give them."""
    strength = torch.einsum("dk,de,ek->k", C, moments.covariance, C)
    return sorted_by_strength(Basis(hook, name, moments.mean, C, C_pinv, strength, 0.0, 0.0))


def neurons(hook: str, moments: Moments) -> Basis:
    """The activations as they are, the most variable first."""
    eye = torch.eye(len(moments.mean)).to(moments.mean)
    return linear_basis(hook, "neuron", moments, C=eye, C_pinv=eye)


def random_rotation(hook: str, moments: Moments, *, seed: int) -> Basis:
    """A rotation drawn uniformly."""
    d = len(moments.mean)
    drawn = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    Q, R = torch.linalg.qr(drawn)
    Q = (Q * R.diagonal().sign()).to(moments.mean)  # QR alone is not uniform
    return linear_basis(hook, "random", moments, C=Q, C_pinv=Q.T)


def dictionary(hook: str, moments: Moments, *, directions: Float[Tensor, "k d"]) -> Basis:
    """An SAE's decoder directions, as they are or some of them, with the shortest coefficients that make up f: C = directions⁺.

    These are not the SAE's codes, which are sparse and no linear function of f. With no more directions than dimensions they are the
    coordinates in the directions' span.
    """
    directions = directions.to(moments.mean)
    if not directions.any():
        raise UserError(f"{hook}: an empty basis, the dictionary has no direction")
    return linear_basis(hook, "sae", moments, C=torch.linalg.pinv(directions), C_pinv=directions)


def principal_components(hook: str, moments: Moments, *, threshold: float) -> Basis:
    """The activations' principal components; those with less than `threshold` × the largest variance are left out."""
    values, U, dropped = varying(hook, moments, threshold=threshold)
    return sorted_by_strength(Basis(hook, "pca", moments.mean, U, U.T, values, dropped, 0.0))


def varying(hook: str, moments: Moments, *, threshold: float) -> tuple[Float[Tensor, "r"], Float[Tensor, "d r"], float]:
    """Variances and directions of the principal components that vary, and the share of the variance in the others.

    Raises:
        UserError: the activations do not vary.
    """
    values, U = torch.linalg.eigh(moments.covariance)
    values, U = values.flip(0).clamp(min=0), U.flip(1)
    scale = moments.gram.diagonal().max()
    if not values[0] > torch.finfo(values.dtype).eps * scale:
        raise UserError(f"{hook}: an empty basis, the activations are the same everywhere")
    keep = values > threshold * values[0]
    return values[keep], U[:, keep], float(values[~keep].sum() / values.sum())
