"""What a network loses and keeps without some of its directions: a module taken out at all of its layers, each task's loss on its own.

A direction is removed by putting its mean in its place: f ↦ f − (f − μ) C_S C⁺_S, with the columns S of C and the rows S of C⁺.
All else stays, also what of the activation a truncated basis does not hold. Removing a module that computes something unwanted is
the use of modularity that Bushnaq et al. 2405.10927 begin with: the network forgets that and keeps the rest.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crux.config.errors import UserError
from crux.config.progress import track
from crux.degeneracy.basis import Basis
from crux.degeneracy.networks.network import Network

TaskLoss = Callable[[Tensor, Any], Float[Tensor, "sample"]]
"""The loss of each sample on one task, of the network's output and the batch's targets."""


class Directions(NamedTuple):
    """Directions of a basis at a hook point: (f − mean) @ to are the coordinates, and coordinates @ back what they add to the mean."""

    to: Float[Tensor, "d k"]
    back: Float[Tensor, "k d"]
    mean: Float[Tensor, "d"]

    def removed(self, f: Float[Tensor, "*samples d"]) -> Float[Tensor, "*samples d"]:
        """The activation with the mean in these directions."""
        of = self.to.to(f)
        return f - ((f - self.mean.to(f)) @ of) @ self.back.to(f)


def directions(basis: Basis, chosen: Bool[Tensor, "k"]) -> Directions:
    """Some of a basis's directions."""
    return Directions(basis.C[:, chosen], basis.C_pinv[chosen], basis.mean)


class Losses(NamedTuple):
    """Mean losses by task."""

    intact: dict[str, float]
    without: dict[str, dict[str, float]]
    """By what was removed."""

    def rise(self, removed: str, task: str) -> float:
        """By how much a task's loss is higher without it."""
        return self.without[removed][task] - self.intact[task]


@torch.no_grad()
def output_without(network: Network, inputs: Tensor, *, removed: Mapping[str, Directions], end: str) -> Tensor:
    """The activation at `end` with directions removed at one or more hook points.

    Raises:
        UserError: hook points that do not exist or lie behind the end, and one that the network has a way past, so that what was
            removed earlier would come back there (a head's output, say: use the residual stream).
    """
    if not removed:
        raise UserError("removed: no hook point given to remove directions at")
    if unknown := sorted({*removed, end} - set(network.hooks)):
        raise UserError(f"{unknown[0]}: no such hook point; there are {', '.join(network.hooks)}")
    order = sorted(removed, key=network.hooks.index)
    clean = network.clean(inputs, capture=order, final=False)
    value = removed[order[0]].removed(clean.activations[order[0]])
    for here, following in itertools.pairwise(order):
        ahead = network.onward(clean, here, value, ends=[following, end])
        through = network.onward(clean, following, ahead[following], ends=[end])
        if not torch.allclose(through[end], ahead[end], rtol=1e-3, atol=1e-3 * float(ahead[end].abs().max())):
            raise UserError(
                f"{following}: the network has a way past it, on which what was removed at {here} comes back; "
                "remove directions at hook points that everything passes through"
            )
        value = removed[following].removed(ahead[following])
    return network.onward(clean, order[-1], value, ends=[end])[end]


@torch.no_grad()
def losses_without(
    network: Network,
    batches: Sequence[tuple[Tensor, Any]],
    *,
    removed: Mapping[str, Mapping[str, Directions]],
    end: str,
    tasks: Mapping[str, TaskLoss],
) -> Losses:
    """Every task's loss, of the network as it is and without each of the modules.

    Args:
        batches: inputs, and the targets that the losses read.
        removed: by name, what is taken out at each hook point.
        end: the hook point whose activation the losses read.
    """
    if not batches:
        raise UserError("no data: at least one batch is needed")
    names = ["", *removed]
    sums = {name: dict.fromkeys(tasks, 0.0) for name in names}
    samples = 0
    for inputs, targets in track(batches, "losses without each module"):
        samples += len(inputs)
        for name in names:
            if name:
                output = output_without(network, inputs, removed=removed[name], end=end)
            else:
                output = network.clean(inputs, capture=[end], final=False).activations[end]
            for task, loss in tasks.items():
                sums[name][task] += float(loss(output, targets).double().sum())
    means = {name: {task: total / samples for task, total in of.items()} for name, of in sums.items()}
    return Losses(means.pop(""), means)
