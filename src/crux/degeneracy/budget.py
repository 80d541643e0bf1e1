"""The degeneracy budget of a ReLU perceptron: an upper bound of 2λ_B from ranks and synchronised neurons, on the samples at hand.

Layer l maps (1, f_l) to y_l by W_l [d_out, d_in]; G_l is the Gram of (1, f_l), K_l the Jacobian Gram from y_l to the output. On finitely
many samples, none of which has a pre-activation of exactly 0, small changes leave every gate as it is. These leave the outputs too:

- Δ G_l = 0 in any of the layers, and any Δ in the row of a neuron that is never on: no f changes. K_l Δ = 0 in any of them, and any Δ in
  the column of such a neuron: f changes where nothing looks at it. In one layer both, K_l Δ G_l = 0. Together those of the first kind
  are free before a layer c, and those of the second behind it: a moved f behind a change of the second kind would undo the first.
- W_l → A W_l, W_{l+1} → W_{l+1} A⁻¹ for A diagonal (the ReLU's rescaling) or mixing the neurons of a synchronised block; and the bias of a
  neuron that is always on, against the biases behind it.

So the behavioural loss on these samples is 0 on a manifold through w* (or through points as near as one likes) of as many dimensions as
the tangents span, and 2λ_B ≤ N − that number. From below, 2λ_B ≥ rank of its Hessian.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.degeneracy.ranks import range_of


class Layer(NamedTuple):
    """A linear map between two hook points of a ReLU perceptron; float64."""

    name: str
    weight: Float[Tensor, "d_out d_in"]
    """With a bias, that is its first column."""
    gram: Float[Tensor, "d_in d_in"]
    """Of (1, f); without a bias, of f."""
    jacobian_gram: Float[Tensor, "d_out d_out"]
    bias: int
    """Columns of the weight that belong to it: 1, or 0."""
    on: Float[Tensor, "d_out"]
    """Share of the samples for which each neuron behind it is on; of the last layer, which has none, nothing of this is read but > 0."""


class Free(NamedTuple):
    """Free directions of one layer by itself."""

    name: str
    d_in: int
    """The constant coordinate of a bias included."""
    d_out: int
    rank_gram: int
    rank_jacobian: int

    @property
    def directions(self) -> int:
        """d_in · d_out − rank G · rank K."""
        return self.d_in * self.d_out - self.rank_gram * self.rank_jacobian


class Budget(NamedTuple):
    """What is free."""

    layers: tuple[Free, ...]
    by_ranks: int
    """Free directions of all layers together, by the ranks of G and K; at most the sum over layers."""
    cut: int
    """The layer before which the first kind counts, behind which the second does."""
    by_rescaling: int
    """How many more the ReLU's rescaling frees: at most one a neuron."""
    by_blocks: int
    """How many more the synchronised blocks free: at most k² − k for a block of k, and one for each neuron that is always on."""

    @property
    def parameters(self) -> int:
        return sum(layer.d_in * layer.d_out for layer in self.layers)

    @property
    def bound(self) -> int:
        """Of 2λ_B from above."""
        return self.parameters - self.by_ranks - self.by_rescaling - self.by_blocks


Ranges = tuple[Tensor, Tensor]
"""Orthonormal columns (g, k): of a layer's changes Δ, those with kᵀ Δ g = 0 are free."""


def budget(layers: Sequence[Layer], *, blocks: Sequence[Sequence[Sequence[int]]], threshold: float) -> Budget:
    """Counts what is free.

    Args:
        blocks: of the hidden layer behind each layer but the last, neurons whose gates agree on every sample.
        threshold: of the ranks, as a share of the largest eigenvalue.
    """
    assert len(blocks) == len(layers) - 1
    alone = [(range_of(x.gram, threshold=threshold), range_of(x.jacobian_gram, threshold=threshold)) for x in layers]
    frees = tuple(
        Free(layer.name, len(g), len(k), g.shape[1], k.shape[1]) for layer, (g, k) in zip(layers, alone, strict=True)
    )
    cuts = [_together(layers, alone, cut) for cut in range(len(layers))]
    free = [sum(len(g) * len(k) - g.shape[1] * k.shape[1] for g, k in ranges) for ranges in cuts]
    cut = max(range(len(layers)), key=lambda c: free[c])
    rescaling: list[Tangents] = []
    mixing: list[Tangents] = []
    for place, found in enumerate(blocks):
        here, behind = layers[place], layers[place + 1]
        each = [(j, j) for j in range(len(here.weight))]
        pairs: list[tuple[int, int | None]] = [(i, j) for block in found for i in block for j in block if i != j]
        if here.bias and behind.bias:
            pairs += [(i, None) for i in (here.on == 1).nonzero()[:, 0].tolist()]
        rescaling.append(_tangents(here, behind, cuts[cut][place], cuts[cut][place + 1], each))
        mixing.append(_tangents(here, behind, cuts[cut][place], cuts[cut][place + 1], [*each, *pairs]))
    scaled = _dimensions(rescaling, threshold)
    return Budget(frees, free[cut], cut, scaled, _dimensions(mixing, threshold) - scaled)


def free_change(
    layers: Sequence[Layer], *, cut: int, threshold: float, generator: torch.Generator
) -> list[Float[Tensor, "_d_out _d_in"]]:
    """A random change of the weights, of norm 1 in all, within what the ranks call free together."""
    alone = [(range_of(x.gram, threshold=threshold), range_of(x.jacobian_gram, threshold=threshold)) for x in layers]
    changes = []
    for layer, (g, k) in zip(layers, _together(layers, alone, cut), strict=True):
        drawn = torch.randn(layer.weight.shape, generator=generator, dtype=layer.weight.dtype)
        changes.append(drawn - k @ (k.T @ drawn @ g) @ g.T)
    length = sum(float(change.square().sum()) for change in changes) ** 0.5
    return [change / length for change in changes]


def _together(layers: Sequence[Layer], alone: Sequence[Ranges], cut: int) -> list[Ranges]:
    """What is free in each layer beside the others: changes of the first kind before the cut, of the second behind it."""
    found = []
    for at, (layer, (g, k)) in enumerate(zip(layers, alone, strict=True)):
        d_out, d_in = layer.weight.shape
        if at > cut:
            constant = torch.ones(layer.bias, dtype=torch.bool)
            g = torch.eye(d_in).to(g)[:, torch.cat([constant, layers[at - 1].on > 0])]
        if at < cut:
            k = torch.eye(d_out).to(k)[:, layer.on > 0]
        found.append((g, k))
    return found


class Tangents(NamedTuple):
    """Of W_l → (1 + ε E_ij) W_l, W_{l+1} → W_{l+1} (1 − ε E_ij) for some (i, j), as unit vectors, what the ranks have not freed already.

    Both changes are outer products: left ⊗ right in layer l, its `here`, and in layer l + 1, its `behind`.
    """

    here: tuple[Float[Tensor, "n k"], Float[Tensor, "n g"]]
    behind: tuple[Float[Tensor, "n k1"], Float[Tensor, "n g1"]]


def _tangents(
    layer: Layer, after: Layer, ranges: Ranges, after_ranges: Ranges, pairs: Sequence[tuple[int, int | None]]
) -> Tangents:
    """j = None stands for the constant coordinate."""
    (g, k), (g_after, k_after) = ranges, after_ranges
    i = torch.tensor([i for i, _ in pairs])
    into = torch.tensor([0 if j is None else after.bias + j for _, j in pairs])
    constant = torch.zeros_like(layer.weight[:1])
    constant[0, 0] = 1
    source = torch.cat([layer.weight, constant])[[len(layer.weight) if j is None else j for _, j in pairs]]
    out = -after.weight[:, after.bias + i].T
    length = (source.square().sum(1) + out.square().sum(1)).sqrt().clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    return Tangents((k[i] / length, source @ g), (out @ k_after / length, g_after[into]))


def _dimensions(tangents: Sequence[Tangents], threshold: float) -> int:
    """Of the space that they span, layer by layer: by their Gram matrix, which outer products give without the vectors."""
    sizes = [len(of.here[0]) for of in tangents]
    gram = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64)
    starts = [sum(sizes[:place]) for place in range(len(sizes) + 1)]
    for place, of in enumerate(tangents):
        own = slice(starts[place], starts[place + 1])
        gram[own, own] = _products(of.here, of.here) + _products(of.behind, of.behind)
        if place + 1 < len(tangents):
            later = slice(starts[place + 1], starts[place + 2])
            gram[own, later] = _products(of.behind, tangents[place + 1].here)
            gram[later, own] = gram[own, later].T
    return int((torch.linalg.eigvalsh(gram) > threshold).sum())


def _products(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Float[Tensor, "n m"]:
    """Of every left ⊗ right of a with every one of b."""
    return (a[0] @ b[0].T) * (a[1] @ b[1].T)
