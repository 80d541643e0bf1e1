"""Synchronised ReLU neurons: neurons that are on for the same inputs, so that together they act as a linear map.

Let p_j be the pre-activation of neuron j and o_j = [p_j > 0] its gate. If neuron j used the gate of neuron i, its relative squared
error would be D_ij = E[(o_i − o_j)² p_j²] / E[o_j p_j²]. Since gates are 0 or 1, the numerator equals
E[o_i (1 − o_j) p_j² + (1 − o_i) o_j p_j²]. It is computed by two products of [sample, h] matrices as a sum of non-negative numbers, so
that D is exactly 0 for neurons that agree on every sample. A neuron that is never on is `dead` and belongs to no block.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor, nn

from crux.config.errors import UserError
from crux.config.progress import track
from crux.degeneracy.gram_ranks import check_threshold
from crux.degeneracy.networks.chain import Chain


class Synchrony(NamedTuple):
    """Pairwise gate errors of the neurons of one layer, over all samples; float64."""

    error: Float[Tensor, "h h"]
    """D_ij; infinite if i or j is dead, and 0 for i = j."""
    on_share: Float[Tensor, "h"]
    """Share of the samples for which each neuron is on."""

    @property
    def distance(self) -> Float[Tensor, "h h"]:
        """The symmetric distance max(D, Dᵀ)."""
        return torch.maximum(self.error, self.error.T)

    @property
    def dead(self) -> Int[Tensor, "n"]:
        """Indices of the neurons that are on for no sample."""
        return (self.on_share == 0).nonzero()[:, 0]


def measure_synchrony(pre_activations: Iterable[Float[Tensor, "_sample h"]]) -> Synchrony:
    """Measure the gate errors of one layer's neurons from batches of pre-activations; memory is O(h²).

    Raises:
        UserError: if there is no data.
    """
    disagreement: Tensor | None = None
    n_on = energy = torch.zeros(())  # Σ o_j and Σ o_j p_j² of each neuron
    n = 0
    for p in track(pre_activations, "comparing gates"):
        p = p.double()
        gate = (p > 0).double()
        square = p.square()
        batch_disagreement = gate.T @ (square * (1 - gate)) + (1 - gate).T @ (square * gate)
        disagreement = batch_disagreement if disagreement is None else disagreement + batch_disagreement
        n_on, energy, n = n_on + gate.sum(0), energy + (square * gate).sum(0), n + len(p)
    if disagreement is None or n == 0:
        raise UserError("no data: at least one batch with one sample is needed")
    dead = n_on == 0
    error = disagreement / energy.where(~dead, 1.0)
    error = error.masked_fill(dead[:, None] | dead, torch.inf).fill_diagonal_(0.0)
    return Synchrony(error, n_on / n)


class SynchronisedBlock(NamedTuple):
    """A group of neurons that can share a gate."""

    members: tuple[int, ...]
    """Indices of two or more neurons, ascending."""
    medoid: int
    """The member with the smallest sum of distances to the others; its gate represents the block."""


def synchronised_blocks(distance: Float[Tensor, "h h"], *, threshold: float) -> list[SynchronisedBlock]:
    """Return the blocks of neurons whose pairwise distances are at most `threshold`, by complete linkage; largest blocks first.

    Raises:
        UserError: if the threshold is not between 0 and 1.
    """
    check_threshold(threshold, name="threshold")
    living = (distance.isfinite().sum(1) > 1).nonzero()[:, 0]  # a dead neuron has a finite distance only to itself
    if len(living) < 2:
        return []
    living_distances = squareform(distance[living][:, living].cpu().numpy())
    labels = fcluster(linkage(living_distances, method="complete"), t=threshold, criterion="distance")
    blocks = []
    for label in sorted(set(labels.tolist())):
        members = living[torch.from_numpy(labels) == label]
        if len(members) > 1:
            sums = distance[members][:, members].sum(1)
            blocks.append(SynchronisedBlock(tuple(members.tolist()), int(members[sums.argmin()])))
    return sorted(blocks, key=lambda block: (-len(block.members), block.members))


def gate_sources(blocks: Sequence[SynchronisedBlock], n: int) -> Int[Tensor, "h"]:
    """Return the neuron whose gate each of n neurons uses: the medoid of its block, or itself if it is in no block."""
    sources = torch.arange(n)
    for block in blocks:
        sources[list(block.members)] = block.medoid
    return sources


def relu_layers(network: Chain) -> dict[str, str]:
    """Return the hook point of each ReLU's input, keyed by the hook point of its output.

    Raises:
        UserError: if the network has no ReLU.
    """
    stages = dict(zip(network.hooks, network.stages.values(), strict=True))
    outputs = [hook for hook in network.hooks[1:] if isinstance(stages[hook], nn.ReLU)]
    if not outputs:
        raise UserError(f"no ReLU neurons in this network; its hook points are {', '.join(network.hooks)}")
    return {hook: network.hooks[network.hooks.index(hook) - 1] for hook in outputs}


@torch.no_grad()
def run_with_shared_gates(
    network: Chain, inputs: Float[Tensor, "sample d_in"], sources: dict[str, Int[Tensor, "h"]]
) -> Float[Tensor, "sample d_out"]:
    """Return the output of the network in which neuron j of each ReLU at a hook uses the gate of neuron sources[hook][j]."""
    assert set(sources) <= set(relu_layers(network))
    value = inputs
    for hook, stage in zip(network.hooks, network.stages.values(), strict=True):
        value = value * (value[..., sources[hook]] > 0) if hook in sources else stage(value)
    return value
