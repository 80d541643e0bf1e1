"""The spectrum of the loss's Hessian from products H v: all of it for few parameters, a Lanczos quadrature for many.

Lanczos from a random start v: after k products, Σ_i τ_i² f(θ_i) with the k Ritz values θ_i approximates vᵀ f(H) v, so its mean over
random starts is tr f(H) / n; the largest θ approaches the largest eigenvalue from below, faster than power iteration with as many products.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.progress import track

FULL = 384
"""Up to so many coordinates the Hessian is formed."""

LANCZOS = 40
"""Products of a Lanczos run; with fewer coordinates, as many as there are."""

LARGEST = 16
"""Of a run that is after the largest eigenvalue alone."""

Product = Callable[[Tensor], Tensor]
"""v [row, n] → H v, each row with its own H."""


class Spectrum(NamedTuple):
    """Σ_i f(a_i) over the eigenvalues ≈ Σ_k weights_k f(values_k), a row each; float64."""

    values: Float[Tensor, "row k"]
    weights: Float[Tensor, "row k"]
    vectors: Float[Tensor, "row n n"] | None
    """Eigenvectors as columns, where all of the Hessian is known; then every weight is 1."""

    @property
    def largest(self) -> Float[Tensor, "row"]:
        return self.values.amax(1)


def product_at(gradient: Callable[[Tensor], Tensor], w: Float[Tensor, "row n"]) -> Product:
    """H v at w by differentiating the gradient; `gradient` gives ∇L of every row, differentiable."""

    def product(v: Float[Tensor, "row n"]) -> Float[Tensor, "row n"]:
        with torch.enable_grad():
            at = w.detach().requires_grad_()
            along = (gradient(at) * v).sum()
            if not along.requires_grad:  # a loss that is linear, or constant, here
                return torch.zeros_like(v)
            (found,) = torch.autograd.grad(along, at, allow_unused=True)
        return torch.zeros_like(v) if found is None else found

    return product


def full_spectrum(product: Product, like: Float[Tensor, "row n"]) -> Spectrum:
    """All eigenvalues and vectors, by n products."""
    n = like.shape[1]
    columns = [
        product(torch.eye(n).to(like)[i].expand_as(like)).double() for i in track(range(n), "Hessian, by columns")
    ]
    H = torch.stack(columns, 2)
    values, vectors = torch.linalg.eigh((H + H.mT) / 2)
    return Spectrum(values, torch.ones_like(values), vectors)


def lanczos_spectrum(product: Product, start: Float[Tensor, "row n"], *, steps: int) -> Spectrum:
    """The quadrature of each row from its own start, by so many products or n; its weights sum to n."""
    v = start / start.norm(dim=1, keepdim=True)
    n, basis, diagonal, beside = start.shape[1], [v], [], []
    for _ in track(range(min(steps, n)), "spectrum of the Hessian"):
        u = product(basis[-1])
        diagonal.append((u * basis[-1]).sum(1))
        for _ in range(2):  # against all earlier vectors, twice: Lanczos by itself loses orthogonality
            for b in basis:
                u = u - (u * b).sum(1, keepdim=True) * b
        length = u.norm(dim=1)
        beside.append(length)
        basis.append(u / length.clamp(min=torch.finfo(u.dtype).tiny)[:, None])
    T = torch.diag_embed(torch.stack(diagonal, 1).double())
    off = torch.diag_embed(torch.stack(beside[:-1], 1).double(), offset=1) if len(beside) > 1 else torch.zeros_like(T)
    values, vectors = torch.linalg.eigh(T + off + off.mT)
    return Spectrum(values, n * vectors[:, 0].square(), None)


def spectrum(product: Product, like: Float[Tensor, "row n"], *, rows_a_case: int, seed: int) -> Spectrum:
    """A row a case: rows of a case have one w, and each gives the quadrature a start of its own."""
    if like.shape[1] <= FULL:
        found = full_spectrum(product, like)
        assert found.vectors is not None
        return Spectrum(*(part[::rows_a_case] for part in (found.values, found.weights, found.vectors)))
    found = lanczos_spectrum(product, random_start(like, seed), steps=LANCZOS)
    return Spectrum(
        found.values.unflatten(0, (-1, rows_a_case)).flatten(1),
        found.weights.unflatten(0, (-1, rows_a_case)).flatten(1) / rows_a_case,
        None,
    )


def largest_eigenvalue(product: Product, like: Float[Tensor, "row n"], *, seed: int) -> Float[Tensor, "row"]:
    """Of every row's own Hessian, from below."""
    return lanczos_spectrum(product, random_start(like, seed), steps=LARGEST).largest


def random_start(like: Float[Tensor, "row n"], seed: int) -> Float[Tensor, "row n"]:
    """Random signs, other ones in each row."""
    generator = torch.Generator().manual_seed(seed)
    return (2.0 * torch.randint(2, like.shape, generator=generator) - 1).to(like)
