"""The spectrum of a loss's Hessian from products H v: all eigenvalues for few parameters, a Lanczos quadrature for many.

After k Lanczos steps from a random start v, Σ_i τ_i² f(θ_i) over the k Ritz values θ_i approximates vᵀ f(H) v; its mean over random
starts is tr f(H) / n. The largest θ_i approaches the largest eigenvalue from below, faster than power iteration with as many products.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.progress import track

MAX_DENSE = 384
"""Largest number of coordinates for which the full Hessian is computed."""

LANCZOS_STEPS = 40
"""Steps of a Lanczos run for the spectrum (at most the number of coordinates)."""

STEPS_FOR_LARGEST_EIGENVALUE = 16
"""Steps of a Lanczos run for the largest eigenvalue alone."""

Product = Callable[[Tensor], Tensor]
"""The function v → H v for v [row, n], with a separate H per row."""


class Spectrum(NamedTuple):
    """A quadrature over eigenvalues a_i, one row per matrix: Σ_i f(a_i) ≈ Σ_k weights_k f(values_k); float64."""

    values: Float[Tensor, "row k"]
    weights: Float[Tensor, "row k"]
    vectors: Float[Tensor, "row n n"] | None
    """Eigenvectors as columns, if the full Hessian was computed; every weight is then 1."""

    @property
    def largest(self) -> Float[Tensor, "row"]:
        return self.values.amax(1)


def make_hessian_product(gradient: Callable[[Tensor], Tensor], w: Float[Tensor, "row n"]) -> Product:
    """Return v → H v at w, by differentiating `gradient`, a differentiable function that returns ∇L of every row."""

    def product(v: Float[Tensor, "row n"]) -> Float[Tensor, "row n"]:
        with torch.enable_grad():
            point = w.detach().requires_grad_()
            slope = (gradient(point) * v).sum()  # along v; its gradient is H v
            if not slope.requires_grad:  # the loss is linear or constant here
                return torch.zeros_like(v)
            (h_v,) = torch.autograd.grad(slope, point, allow_unused=True)
        return torch.zeros_like(v) if h_v is None else h_v

    return product


def full_spectrum(product: Product, like: Float[Tensor, "row n"]) -> Spectrum:
    """Compute all eigenvalues and eigenvectors from n products; `like` has the shape, dtype and device of w."""
    n = like.shape[1]
    columns = [
        product(torch.eye(n).to(like)[i].expand_as(like)).double() for i in track(range(n), "Hessian, column by column")
    ]
    H = torch.stack(columns, 2)
    values, vectors = torch.linalg.eigh((H + H.mT) / 2)
    return Spectrum(values, torch.ones_like(values), vectors)


def lanczos_spectrum(product: Product, start: Float[Tensor, "row n"], *, steps: int) -> Spectrum:
    """Compute a Lanczos quadrature per row, from that row of `start`, in at most `steps` products; weights sum to n."""
    v = start / start.norm(dim=1, keepdim=True)
    n, basis, diagonal, off_diagonal = start.shape[1], [v], [], []
    for _ in track(range(min(steps, n)), "spectrum of the Hessian"):
        u = product(basis[-1])
        diagonal.append((u * basis[-1]).sum(1))
        for _ in range(2):  # orthogonalise twice against all earlier vectors, because plain Lanczos loses orthogonality
            for b in basis:
                u = u - (u * b).sum(1, keepdim=True) * b
        length = u.norm(dim=1)
        off_diagonal.append(length)
        basis.append(u / length.clamp(min=torch.finfo(u.dtype).tiny)[:, None])
    T = torch.diag_embed(torch.stack(diagonal, 1).double())
    super_diagonal = (
        torch.diag_embed(torch.stack(off_diagonal[:-1], 1).double(), offset=1)
        if len(off_diagonal) > 1
        else torch.zeros_like(T)
    )
    values, vectors = torch.linalg.eigh(T + super_diagonal + super_diagonal.mT)
    return Spectrum(values, n * vectors[:, 0].square(), None)  # τ_i is the first component of the i-th eigenvector


def estimate_spectrum(product: Product, like: Float[Tensor, "row n"], *, rows_per_case: int, seed: int) -> Spectrum:
    """Return the spectrum with one row per case. All rows of a case must have the same w; each is one random start of the quadrature.

    `like` has the shape, dtype and device of w.
    """
    if like.shape[1] <= MAX_DENSE:
        spectrum = full_spectrum(product, like)
        assert spectrum.vectors is not None
        return Spectrum(*(part[::rows_per_case] for part in (spectrum.values, spectrum.weights, spectrum.vectors)))
    spectrum = lanczos_spectrum(product, random_signs(like, seed), steps=LANCZOS_STEPS)
    return Spectrum(
        spectrum.values.unflatten(0, (-1, rows_per_case)).flatten(1),
        spectrum.weights.unflatten(0, (-1, rows_per_case)).flatten(1) / rows_per_case,
        None,
    )


def largest_eigenvalue(product: Product, like: Float[Tensor, "row n"], *, seed: int) -> Float[Tensor, "row"]:
    """Return the largest eigenvalue of every row's Hessian, approached from below."""
    return lanczos_spectrum(product, random_signs(like, seed), steps=STEPS_FOR_LARGEST_EIGENVALUE).largest


def random_signs(like: Float[Tensor, "row n"], seed: int) -> Float[Tensor, "row n"]:
    """Return random signs, independent for each row, with the shape, dtype and device of `like`."""
    generator = torch.Generator().manual_seed(seed)
    return (2.0 * torch.randint(2, like.shape, generator=generator) - 1).to(like)
