"""The degeneracy budget of a ReLU perceptron: an upper bound on 2λ_B from ranks and synchronised neurons, for given samples.

λ_B is the learning coefficient of the behavioural loss (Bushnaq et al. 2405.10927). Layer l maps (1, f_l) to y_l by W_l [d_out, d_in].
G_l is the Gram of (1, f_l), and K_l the Jacobian Gram from y_l to the output. If no sample has a pre-activation of exactly 0, small
changes of the weights leave every gate unchanged. The following small changes Δ leave the outputs unchanged too:

1. Changes that alter no activation: Δ G_l = 0, or any Δ in the row of a neuron that is never on.
2. Changes that alter activations only in directions that the output does not depend on: K_l Δ = 0, or any Δ in the column of a
   neuron that is never on.
   Within one layer both kinds combine to K_l Δ G_l = 0. Across layers, kind 1 can be used in all layers before some layer c (the cut) and
   kind 2 in all layers after it; the reverse order does not work, since kind 2 alters the activations that kind 1 depends on.
3. Changes of two layers that cancel, W_l → A W_l, W_{l+1} → W_{l+1} A⁻¹, where A is diagonal (rescaling of ReLU neurons) or mixes the
   neurons of a synchronised block. Likewise the bias of a neuron that is always on, compensated by the biases of the next layer.

The behavioural loss on these samples is therefore 0 on a manifold through w* (or through points arbitrarily close to it), whose
dimension is the rank of these tangent vectors. Hence 2λ_B ≤ (number of parameters) − (this dimension). The rank of the Hessian
is a lower bound on 2λ_B.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.degeneracy.gram_ranks import gram_range


class Layer(NamedTuple):
    """A linear map between two hook points of a ReLU perceptron; float64."""

    name: str
    weight: Float[Tensor, "d_out d_in"]
    """The first column is the bias, if there is one."""
    gram: Float[Tensor, "d_in d_in"]
    """Gram of (1, f), or of f if there is no bias."""
    jacobian_gram: Float[Tensor, "d_out d_out"]
    """Jacobian Gram from the map's output to the network's output."""
    bias: int
    """Number of bias columns in the weight: 1 or 0."""
    on_share: Float[Tensor, "d_out"]
    """Share of the samples for which each output neuron is on. The last layer has no ReLU: give any positive numbers."""


class FreeDirections(NamedTuple):
    """Number of free directions of one layer when only this layer changes."""

    name: str
    d_in: int
    """Includes the constant coordinate of a bias."""
    d_out: int
    rank_gram: int
    rank_jacobian: int

    @property
    def directions(self) -> int:
        """d_in · d_out − rank G · rank K."""
        return self.d_in * self.d_out - self.rank_gram * self.rank_jacobian


class Budget(NamedTuple):
    """Number of free directions of all layers together, by their cause."""

    layers: tuple[FreeDirections, ...]
    by_ranks: int
    """Free directions of all layers together that follow from the ranks of G and K; at most the sum over layers."""
    cut: int
    """Index of the layer c: changes of kind 1 are counted before it, those of kind 2 after it, both in it (see above)."""
    by_rescaling: int
    """Additional free directions from rescaling ReLU neurons: at most one per neuron."""
    by_blocks: int
    """Additional free directions from synchronised blocks (at most k² − k for k neurons) and from neurons that are always on (one each)."""

    @property
    def parameters(self) -> int:
        """Total number of parameters."""
        return sum(layer.d_in * layer.d_out for layer in self.layers)

    @property
    def bound(self) -> int:
        """The upper bound on 2λ_B."""
        return self.parameters - self.by_ranks - self.by_rescaling - self.by_blocks


Ranges = tuple[Tensor, Tensor]
"""Orthonormal columns (g, k) of a layer, which span the ranges of G and K: its changes Δ with kᵀ Δ g = 0 are free."""


def degeneracy_budget(
    layers: Sequence[Layer], *, blocks: Sequence[Sequence[Sequence[int]]], threshold: float
) -> Budget:
    """Count the free directions of all layers together, for the cut with the most of them.

    Args:
        blocks: per layer except the last, the groups of its output neurons whose gates agree on every sample.
        threshold: relative threshold of all ranks.
    """
    assert len(blocks) == len(layers) - 1
    ranges = _find_layer_ranges(layers, threshold)
    per_layer = tuple(
        FreeDirections(layer.name, len(g), len(k), g.shape[1], k.shape[1])
        for layer, (g, k) in zip(layers, ranges, strict=True)
    )
    cuts = [_find_joint_ranges(layers, ranges, cut) for cut in range(len(layers))]
    free = [sum(len(g) * len(k) - g.shape[1] * k.shape[1] for g, k in joint) for joint in cuts]
    cut = max(range(len(layers)), key=lambda c: free[c])
    rescaling: list[Tangents] = []
    mixing: list[Tangents] = []
    for i, layer_blocks in enumerate(blocks):
        layer, after = layers[i], layers[i + 1]
        diagonal = [(j, j) for j in range(len(layer.weight))]
        pairs: list[tuple[int, int | None]] = [(a, b) for block in layer_blocks for a in block for b in block if a != b]
        if (
            layer.bias and after.bias
        ):  # a change of the bias of a neuron that is always on: None is the constant coordinate
            pairs += [(j, None) for j in (layer.on_share == 1).nonzero()[:, 0].tolist()]
        rescaling.append(_build_tangents(layer, after, cuts[cut][i], cuts[cut][i + 1], diagonal))
        mixing.append(_build_tangents(layer, after, cuts[cut][i], cuts[cut][i + 1], [*diagonal, *pairs]))
    by_rescaling = _count_span_dimensions(rescaling, threshold)
    return Budget(per_layer, free[cut], cut, by_rescaling, _count_span_dimensions(mixing, threshold) - by_rescaling)


def draw_free_change(
    layers: Sequence[Layer], *, cut: int, threshold: float, generator: torch.Generator
) -> list[Float[Tensor, "_d_out _d_in"]]:
    """Return a random change of all weights, of total norm 1, in the directions that are jointly free by the ranks."""
    changes = []
    for layer, (g, k) in zip(
        layers, _find_joint_ranges(layers, _find_layer_ranges(layers, threshold), cut), strict=True
    ):
        change = torch.randn(layer.weight.shape, generator=generator, dtype=layer.weight.dtype)
        changes.append(change - k @ (k.T @ change @ g) @ g.T)
    length = sum(float(change.square().sum()) for change in changes) ** 0.5
    return [change / length for change in changes]


def _find_layer_ranges(layers: Sequence[Layer], threshold: float) -> list[Ranges]:
    """Return the ranges of each layer when only this layer changes."""
    return [(gram_range(x.gram, threshold=threshold), gram_range(x.jacobian_gram, threshold=threshold)) for x in layers]


def _find_joint_ranges(layers: Sequence[Layer], ranges: Sequence[Ranges], cut: int) -> list[Ranges]:
    """Return the ranges of each layer when all layers change: kind 1 of changes before the cut, kind 2 after it."""
    joint = []
    for i, (layer, (g, k)) in enumerate(zip(layers, ranges, strict=True)):
        d_out, d_in = layer.weight.shape
        if i > cut:  # kind 2 only: the columns of neurons that are never on are free, all others count in full
            constant = torch.ones(layer.bias, dtype=torch.bool)
            g = torch.eye(d_in).to(g)[:, torch.cat([constant, layers[i - 1].on_share > 0])]
        if i < cut:  # kind 1 only: the rows of neurons that are never on are free, all others count in full
            k = torch.eye(d_out).to(k)[:, layer.on_share > 0]
        joint.append((g, k))
    return joint


class Tangents(NamedTuple):
    """Unit tangent vectors of W_l → (1 + ε E_ij) W_l, W_{l+1} → W_{l+1} (1 − ε E_ij), one per pair (i, j).

    E_ij is the matrix with a single 1, at (i, j). The tangent vectors are projected onto the directions that are not already free by the
    ranks. In both layers the change is an outer product left ⊗ right.
    """

    layer: tuple[Float[Tensor, "n k"], Float[Tensor, "n g"]]
    """(left, right) in layer l."""
    after: tuple[Float[Tensor, "n k1"], Float[Tensor, "n g1"]]
    """(left, right) in layer l + 1."""


def _build_tangents(
    layer: Layer, after: Layer, ranges: Ranges, after_ranges: Ranges, pairs: Sequence[tuple[int, int | None]]
) -> Tangents:
    """Return the tangents of the pairs (i, j); j = None stands for the constant coordinate."""
    (g, k), (g_after, k_after) = ranges, after_ranges
    # E_ij W_l is row j of W_l, added to row i; W_{l+1} E_ij is column i of W_{l+1}, subtracted from column j
    i = torch.tensor([i for i, _ in pairs])
    changed_column = torch.tensor([0 if j is None else after.bias + j for _, j in pairs])
    constant = torch.zeros_like(layer.weight[:1])
    constant[0, 0] = 1
    added_row = torch.cat([layer.weight, constant])[[len(layer.weight) if j is None else j for _, j in pairs]]
    added_column = -after.weight[:, after.bias + i].T
    length = (added_row.square().sum(1) + added_column.square().sum(1)).sqrt()
    length = length.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    return Tangents((k[i] / length, added_row @ g), (added_column @ k_after / length, g_after[changed_column]))


def _count_span_dimensions(tangents: Sequence[Tangents], threshold: float) -> int:
    """Return the dimension of the span of all tangents.

    It is the rank of their Gram matrix, which is computed from the factors of the outer products. Only the tangents of the same and of
    neighbouring layers change weights in common, so all other inner products are 0.
    """
    sizes = [len(tangent.layer[0]) for tangent in tangents]
    gram = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64)
    starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    for i, tangent in enumerate(tangents):
        rows = slice(starts[i], starts[i + 1])
        gram[rows, rows] = _inner_products(tangent.layer, tangent.layer) + _inner_products(tangent.after, tangent.after)
        if i + 1 < len(tangents):
            next_rows = slice(starts[i + 1], starts[i + 2])
            gram[rows, next_rows] = _inner_products(tangent.after, tangents[i + 1].layer)
            gram[next_rows, rows] = gram[rows, next_rows].T
    return int((torch.linalg.eigvalsh(gram) > threshold).sum())


def _inner_products(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Float[Tensor, "n m"]:
    """Return the inner products of all outer products left ⊗ right of a with all those of b."""
    return (a[0] @ b[0].T) * (a[1] @ b[1].T)
