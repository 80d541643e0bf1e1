"""Synchronised ReLU neurons: those that are on and off for the same inputs act as one linear map of many.

With p_j the pre-activation and o_j = [p_j > 0] the gate, D_ij = E[(o_i − o_j)² p_j²] / E[o_j p_j²] is the relative error of neuron j under
neuron i's gate. For gates of 0 and 1 the numerator is E[o_i (1 − o_j) p_j² + (1 − o_i) o_j p_j²]: two products of [sample, h] matrices,
sums of positive numbers, so that neurons which agree have D = 0 and not a rounding error. A neuron that is never on has no gate to lend
and none to be given: it is `dead`, and belongs to no block.
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
from crux.degeneracy.networks.chain import Chain
from crux.degeneracy.ranks import check_threshold


class Synchrony(NamedTuple):
    """Of the neurons of one layer, over all samples; float64."""

    error: Float[Tensor, "h h"]
    """D_ij of the neurons that are ever on; infinite where i or j is dead, 0 for i = j."""
    alive: Float[Tensor, "h"]
    """Share of the samples that each is on for."""

    @property
    def distance(self) -> Float[Tensor, "h h"]:
        """max(D, Dᵀ)."""
        return torch.maximum(self.error, self.error.T)

    @property
    def dead(self) -> Int[Tensor, "n"]:
        """The neurons that are on for no sample."""
        return (self.alive == 0).nonzero()[:, 0]


def synchrony(pre_activations: Iterable[Float[Tensor, "_sample h"]]) -> Synchrony:
    """Adds up batches of pre-activations, in h² numbers.

    Raises:
        UserError: no data.
    """
    wrong: Tensor | None = None
    on = energy = torch.zeros(())
    n = 0
    for p in track(pre_activations, "comparing gates"):
        p = p.double()
        gate = (p > 0).double()
        square = p.square()
        batch = gate.T @ (square * (1 - gate)) + (1 - gate).T @ (square * gate)
        wrong = batch if wrong is None else wrong + batch
        on, energy, n = on + gate.sum(0), energy + (square * gate).sum(0), n + len(p)
    if wrong is None or n == 0:
        raise UserError("no data: at least one batch with one sample is needed")
    dead = on == 0
    error = wrong / energy.where(~dead, 1.0)
    error = error.masked_fill(dead[:, None] | dead, torch.inf).fill_diagonal_(0.0)
    return Synchrony(error, on / n)


class Block(NamedTuple):
    """Neurons that can share a gate."""

    members: tuple[int, ...]
    """Two or more, in order."""
    medoid: int
    """The one whose distances to the others have the smallest sum; its gate is the block's."""


def blocks(distance: Float[Tensor, "h h"], *, threshold: float) -> list[Block]:
    """Complete linkage, cut where the largest distance within a block would pass the threshold; the largest blocks first.

    Raises:
        UserError: for a threshold that is not between 0 and 1.
    """
    check_threshold(threshold, name="threshold")
    living = (distance.isfinite().sum(1) > 1).nonzero()[:, 0]
    if len(living) < 2:
        return []
    among = distance[living][:, living].cpu()
    labels = fcluster(linkage(squareform(among.numpy()), method="complete"), t=threshold, criterion="distance")
    found = []
    for label in sorted(set(labels.tolist())):
        members = living[torch.from_numpy(labels) == label]
        if len(members) > 1:
            sums = distance[members][:, members].sum(1)
            found.append(Block(tuple(members.tolist()), int(members[sums.argmin()])))
    return sorted(found, key=lambda block: (-len(block.members), block.members))


def lenders(found: Sequence[Block], n: int) -> Int[Tensor, "h"]:
    """Whose gate each of n neurons gets: its own where it is in no block."""
    whose = torch.arange(n)
    for block in found:
        whose[list(block.members)] = block.medoid
    return whose


def relu_layers(network: Chain) -> dict[str, str]:
    """The hook point before each ReLU, by the one behind it.

    Raises:
        UserError: where the network has none.
    """
    stages = dict(zip(network.hooks, network.stages.values(), strict=True))
    behind = [hook for hook in network.hooks[1:] if isinstance(stages[hook], nn.ReLU)]
    if not behind:
        raise UserError(f"no ReLU neurons in this network; its hook points are {', '.join(network.hooks)}")
    return {hook: network.hooks[network.hooks.index(hook) - 1] for hook in behind}


@torch.no_grad()
def with_gates_of(
    network: Chain, inputs: Float[Tensor, "sample d_in"], lent: dict[str, Int[Tensor, "h"]]
) -> Float[Tensor, "sample d_out"]:
    """The output where neuron j of the ReLU stage at a hook lets its pre-activation through when neuron lent[hook][j] is on."""
    assert set(lent) <= set(relu_layers(network))
    value = inputs
    for hook, stage in zip(network.hooks, network.stages.values(), strict=True):
        value = value * (value[..., lent[hook]] > 0) if hook in lent else stage(value)
    return value
