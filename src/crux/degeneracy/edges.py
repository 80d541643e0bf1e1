"""How strongly each direction of a basis acts on each direction of the next: the edges of the interaction graph.

    Ê_ij = 1/(N T) Σ_x Σ_t [ Σ_s ∫₀¹ dα ∂f̂'_{t,i}/∂f̂_{s,j} (α f̂) · f̂_{s,j} ]²

from coordinate j at a hook point to coordinate i at the next (2405.10928; there the graph shows √Ê). The path starts at the mean
activation, f̂ = 0, where what was left out of a basis stays; the integral is Gauss–Legendre's, or the gradient at α = 1 alone. The
constant node's edge to i is what the mean activation gives by itself, 1/(N T) Σ f̂'_{t,i}(0)².

Forwards, one Jacobian-vector product for each j gives Σ_s of all (t, i), exactly. Backwards, one vector-Jacobian product for each (t, i)
gives all j; or for each i with random signs φ_t, since the mean of (Σ_t φ_t J_t)² over the signs is Σ_t J_t².
"""

import itertools
import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from crux.config.progress import track
from crux.degeneracy.basis import Basis
from crux.degeneracy.grams import check_data, check_order, positions
from crux.degeneracy.networks.network import Network
from crux.subjects.subject import Clean


class Edges(NamedTuple):
    """Between two hook points."""

    source: str
    target: str
    strength: Float[Tensor, "n_to n_from"]
    """Ê, not negative."""
    constant: Float[Tensor, "n_to"]
    """From the constant node."""


Side = Literal["jvp", "vjp"]


def edges(
    network: Network,
    batches: Sequence[Tensor],
    *,
    bases: Sequence[Basis],
    points: int | None,
    probes: int | None,
    side: Side | None,
    seed: int,
) -> list[Edges]:
    """The edges from each basis to the next.

    Args:
        bases: at hook points in the network's order.
        points: of the quadrature; None: the gradient at α = 1.
        probes: random signs over positions a target direction, where the products run backwards; None: every position by itself.
        side: forwards (jvp) or backwards (vjp); None: whichever takes fewer products.

    Raises:
        UserError: no data, or bases out of order.
    """
    check_data(batches)
    check_order(network, [basis.hook for basis in bases])
    assert points is None or points > 0
    assert probes is None or probes > 0
    generator = torch.Generator().manual_seed(seed)
    return [
        _between(network, batches, a, b, _path(points), probes, side, generator) for a, b in itertools.pairwise(bases)
    ]


def _path(points: int | None) -> list[tuple[float, float]]:
    """α and weight of the quadrature on [0, 1]."""
    if points is None:
        return [(1.0, 1.0)]
    at, weight = np.polynomial.legendre.leggauss(points)
    return [((1 + float(a)) / 2, float(w) / 2) for a, w in zip(at, weight, strict=True)]


class _Section(NamedTuple):
    """A batch's way from a basis to the next."""

    network: Network
    clean: Clean
    a: Basis
    b: Basis
    coordinates: Tensor
    """f̂ at the first."""
    dtype: torch.dtype

    def value(self, alpha: float) -> Tensor:
        """The activation at α f̂."""
        return self.a.activations(alpha * self.coordinates).to(self.dtype)

    def end(self, value: Tensor) -> Tensor:
        """The activation at the second, when `value` stands at the first."""
        return self.network.onward(self.clean, self.a.hook, value, ends=[self.b.hook])[self.b.hook]


def _between(
    network: Network,
    batches: Sequence[Tensor],
    a: Basis,
    b: Basis,
    path: list[tuple[float, float]],
    probes: int | None,
    side: Side | None,
    generator: torch.Generator,
) -> Edges:
    strength, constant, n = a.C.new_zeros(b.size, a.size), a.C.new_zeros(b.size), 0
    for inputs in track(batches, f"edges from {a.hook} to {b.hook}"):
        if not len(inputs):
            continue
        clean = network.clean(inputs, capture=[a.hook], final=False)
        f = clean.activations[a.hook]
        section = _Section(network, clean, a, b, a.coordinates(f), f.dtype)
        with torch.no_grad():
            at_mean = section.end(section.value(0.0))
        constant += b.coordinates(at_mean).square().flatten(0, -2).sum(0)
        n_positions = positions(at_mean)
        n += len(inputs) * n_positions
        backward = b.size * (n_positions if probes is None else probes)
        if (side or ("jvp" if a.size <= backward else "vjp")) == "jvp":
            _forwards(strength, section, path)
        else:
            _backwards(strength, section, path, probes, generator)
    return Edges(a.hook, b.hook, strength / n, constant / n)


def _load_forward_mode() -> None:
    """torch's first dual tensor compiles rules with a compiler that torch itself calls deprecated."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


@torch.no_grad()
def _forwards(strength: Tensor, section: _Section, path: list[tuple[float, float]]) -> None:
    _load_forward_mode()
    a, b = section.a, section.b
    values = [(section.value(alpha), weight) for alpha, weight in path]
    with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():  # fused attention has no forward derivative
        for j in track(range(a.size), "forward derivatives"):
            along = (section.coordinates[..., j, None] * a.C_pinv[j]).to(section.dtype)
            moved: Tensor | None = None
            for value, weight in values:
                tangent = forward_ad.unpack_dual(section.end(forward_ad.make_dual(value, along))).tangent
                if tangent is not None:  # None: the end does not depend on the value
                    moved = weight * tangent.double() if moved is None else moved + weight * tangent.double()
            if moved is not None:
                strength[:, j] += (moved @ b.C).square().flatten(0, -2).sum(0)


def _backwards(
    strength: Tensor, section: _Section, path: list[tuple[float, float]], probes: int | None, generator: torch.Generator
) -> None:
    a, b = section.a, section.b
    ways: list[tuple[Tensor, Tensor, float]] = []
    for alpha, weight in path:
        value = section.value(alpha).requires_grad_()
        with torch.enable_grad():
            ways.append((value, section.end(value), weight))
    end = ways[0][1]
    if not end.requires_grad:
        return
    at = end.shape[:-1]
    for i in track(range(b.size), "backward passes"):
        for once in range(positions(end) if probes is None else probes):
            if probes is None:
                there = torch.zeros(len(end), positions(end), device=end.device)
                there[:, once] = 1
                signs = there.reshape(at)
            else:
                signs = (2.0 * torch.randint(2, at, generator=generator) - 1).to(end.device)
            cotangent = (signs[..., None] * b.C[:, i]).to(end.dtype)
            moved = torch.zeros_like(section.coordinates)
            for value, reached, weight in ways:
                (gradient,) = torch.autograd.grad(
                    reached, value, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                moved += weight * gradient.double() @ a.C_pinv.T
            each = (
                (moved * section.coordinates).flatten(1, -2).sum(1) if moved.dim() > 2 else moved * section.coordinates
            )
            strength[i] += each.square().sum(0) / (1 if probes is None else probes)
