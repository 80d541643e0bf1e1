"""Edges of the interaction graph: how strongly each direction of a basis acts on each direction of the next basis.

    Ê_ij = 1/(N T) Σ_x Σ_t [ Σ_s ∫₀¹ dα ∂f̂'_{t,i}/∂f̂_{s,j} (α f̂) · f̂_{s,j} ]²

is the edge from coordinate j at one hook point to coordinate i at the next, for N samples x with T positions t at the second hook point
and positions s at the first (Bushnaq et al. 2405.10928; the paper's graphs show √Ê). The integration path starts at the mean activation,
f̂ = 0. Directions that a basis leaves out stay at their mean along the path. The integral is computed by Gauss–Legendre
quadrature, or replaced by the gradient at α = 1. The edge from the constant node to i is 1/(N T) Σ f̂'_{t,i}(0)², the effect of the mean
activation.

In forward mode, one Jacobian-vector product per j gives Σ_s for all (t, i) exactly. In reverse mode, one vector-Jacobian product per (t, i)
gives all j. With random signs φ_t, one product per i and probe is enough, since the mean of (Σ_t φ_t J_t)² over the signs is Σ_t J_t².
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
from crux.degeneracy.grams import check_data, check_hooks_in_order, count_positions
from crux.degeneracy.networks.network import Network
from crux.subjects.subject import Clean


class Edges(NamedTuple):
    """The edges from one basis to the next."""

    source: str
    """The first hook point."""
    target: str
    """The second hook point."""
    strength: Float[Tensor, "n_to n_from"]
    """Ê ≥ 0."""
    constant: Float[Tensor, "n_to"]
    """Edges from the constant node."""


Mode = Literal["jvp", "vjp"]
"""Forward mode (Jacobian-vector products) or reverse mode (vector-Jacobian products)."""


def interaction_edges(
    network: Network,
    batches: Sequence[Tensor],
    *,
    bases: Sequence[Basis],
    points: int | None,
    probes: int | None,
    mode: Mode | None,
    seed: int,
) -> list[Edges]:
    """Return the edges from each basis to the next.

    Args:
        bases: one per hook point, in the network's order.
        points: number of quadrature points; None: use the gradient at α = 1.
        probes: number of random sign vectors over positions per target direction, in reverse mode; None: one product per position.
        mode: forward (jvp) or reverse (vjp) mode; None: the one that takes fewer products.

    Raises:
        UserError: if there is no data, or the bases are out of order.
    """
    check_data(batches)
    check_hooks_in_order(network, [basis.hook for basis in bases])
    assert points is None or points > 0
    assert probes is None or probes > 0
    generator = torch.Generator().manual_seed(seed)
    return [
        _compute_edges_between(network, batches, a, b, _list_quadrature_points(points), probes, mode, generator)
        for a, b in itertools.pairwise(bases)
    ]


def _list_quadrature_points(points: int | None) -> list[tuple[float, float]]:
    """Return α and weight of each quadrature point on [0, 1]."""
    if points is None:
        return [(1.0, 1.0)]
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return [((1 + float(x)) / 2, float(w) / 2) for x, w in zip(nodes, weights, strict=True)]


class _Section(NamedTuple):
    """The part of a network from basis a to the next basis b, for one batch."""

    network: Network
    clean: Clean
    a: Basis
    b: Basis
    coordinates: Tensor
    """f̂ in the first basis."""
    dtype: torch.dtype

    def scale_coordinates(self, alpha: float) -> Tensor:
        """Return the activation with coordinates α f̂ at the first hook point."""
        return self.a.activations(alpha * self.coordinates).to(self.dtype)

    def continue_to_end(self, value: Tensor) -> Tensor:
        """Return the activation at the second hook point if the activation at the first is `value`."""
        return self.network.continue_from(self.clean, self.a.hook, value, ends=[self.b.hook])[self.b.hook]


def _compute_edges_between(
    network: Network,
    batches: Sequence[Tensor],
    a: Basis,
    b: Basis,
    quadrature: list[tuple[float, float]],
    probes: int | None,
    mode: Mode | None,
    generator: torch.Generator,
) -> Edges:
    """Return the edges from basis a to basis b."""
    strength, constant, n = a.C.new_zeros(b.size, a.size), a.C.new_zeros(b.size), 0
    for inputs in track(batches, f"edges from {a.hook} to {b.hook}"):
        if not len(inputs):
            continue
        clean = network.clean(inputs, capture=[a.hook], final=False)
        f = clean.activations[a.hook]
        section = _Section(network, clean, a, b, a.coordinates(f), f.dtype)
        with torch.no_grad():
            at_mean = section.continue_to_end(section.scale_coordinates(0.0))
        constant += b.coordinates(at_mean).square().flatten(0, -2).sum(0)
        n_positions = count_positions(at_mean)
        n += len(inputs) * n_positions
        reverse_products = b.size * (n_positions if probes is None else probes)
        if (mode or ("jvp" if a.size <= reverse_products else "vjp")) == "jvp":
            _add_by_jvp(strength, section, quadrature)
        else:
            _add_by_vjp(strength, section, quadrature, probes, generator)
    return Edges(a.hook, b.hook, strength / n, constant / n)


def _load_forward_mode() -> None:
    """Initialise torch's forward mode without its warning, which the first dual tensor raises: it uses a deprecated compiler of torch."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


@torch.no_grad()
def _add_by_jvp(strength: Tensor, section: _Section, quadrature: list[tuple[float, float]]) -> None:
    """Add a batch's sum of squared integrals to the edge strengths, with one Jacobian-vector product per source direction."""
    _load_forward_mode()
    a, b = section.a, section.b
    values = [(section.scale_coordinates(alpha), weight) for alpha, weight in quadrature]
    with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():  # fused attention has no forward derivative
        for j in track(range(a.size), "forward derivatives"):
            direction = (section.coordinates[..., j, None] * a.C_pinv[j]).to(section.dtype)
            integral: Tensor | None = None
            for value, weight in values:
                tangent = forward_ad.unpack_dual(
                    section.continue_to_end(forward_ad.make_dual(value, direction))
                ).tangent
                if tangent is not None:  # None: the end does not depend on the value
                    integral = weight * tangent.double() if integral is None else integral + weight * tangent.double()
            if integral is not None:
                strength[:, j] += (integral @ b.C).square().flatten(0, -2).sum(0)


def _add_by_vjp(
    strength: Tensor,
    section: _Section,
    quadrature: list[tuple[float, float]],
    probes: int | None,
    generator: torch.Generator,
) -> None:
    """Add a batch's sum of squared integrals to the edge strengths, with vector-Jacobian products from each target direction."""
    a, b = section.a, section.b
    graphs: list[tuple[Tensor, Tensor, float]] = []  # (value, end, weight) of each quadrature point
    for alpha, weight in quadrature:
        value = section.scale_coordinates(alpha).requires_grad_()
        with torch.enable_grad():
            graphs.append((value, section.continue_to_end(value), weight))
    end = graphs[0][1]
    if not end.requires_grad:
        return
    shape = end.shape[:-1]
    for i in track(range(b.size), "backward passes"):
        for product in range(count_positions(end) if probes is None else probes):
            if probes is None:  # each product selects one position
                one_position = torch.zeros(len(end), count_positions(end), device=end.device)
                one_position[:, product] = 1
                signs = one_position.reshape(shape)
            else:
                signs = (2.0 * torch.randint(2, shape, generator=generator) - 1).to(end.device)
            cotangent = (signs[..., None] * b.C[:, i]).to(end.dtype)
            integral = torch.zeros_like(section.coordinates)
            for value, output, weight in graphs:
                (gradient,) = torch.autograd.grad(
                    output, value, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                integral += weight * gradient.double() @ a.C_pinv.T
            effect = integral * section.coordinates
            if effect.dim() > 2:  # sum over the positions s
                effect = effect.flatten(1, -2).sum(1)
            strength[i] += effect.square().sum(0) / (1 if probes is None else probes)
