"""Removal of a module: each task's loss without the module's directions, at all of its layers.

Directions S are removed by setting their coordinates to the mean: f ↦ f − (f − μ) C_S C⁺_S, with the columns S of C and the rows S of
C⁺. Everything else stays, including the part of the activation that a truncated basis does not represent. Bushnaq et al. (2405.10927)
motivate modularity by this use: if a module computes something unwanted, removing it leaves the rest of the network intact.
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
"""(output, targets) → the loss of each sample on one task."""


class Directions(NamedTuple):
    """Some of the directions of a basis at a hook point."""

    C: Float[Tensor, "d k"]
    """Maps centred activations to coordinates: (f − mean) @ C."""
    C_pinv: Float[Tensor, "k d"]
    """Maps the coordinates to their contribution to f."""
    mean: Float[Tensor, "d"]
    """μ, or any other value of f at which the coordinates are 0."""

    def remove_from(self, f: Float[Tensor, "*samples d"]) -> Float[Tensor, "*samples d"]:
        """Return the activations with these coordinates set to 0, their mean."""
        return f - ((f - self.mean.to(f)) @ self.C.to(f)) @ self.C_pinv.to(f)


def select_directions(basis: Basis, chosen: Bool[Tensor, "k"]) -> Directions:
    """Return the chosen directions of a basis."""
    return Directions(basis.C[:, chosen], basis.C_pinv[chosen], basis.mean)


class RemovalLosses(NamedTuple):
    """Mean losses per task, of the intact network and after each removal."""

    intact: dict[str, float]
    """Mean loss per task."""
    without: dict[str, dict[str, float]]
    """Mean loss per task, for each removed module."""

    def rise(self, removed: str, task: str) -> float:
        """Return by how much a task's loss rises when the module is removed."""
        return self.without[removed][task] - self.intact[task]


@torch.no_grad()
def output_without(network: Network, inputs: Tensor, *, removed: Mapping[str, Directions], end: str) -> Tensor:
    """Return the activation at `end` with directions removed at one or more hook points.

    Raises:
        UserError: if hook points do not exist or come after `end`; or if the network has a path around one of them, on which directions
            that were removed earlier would return (for example a head's output: use the residual stream instead).
    """
    if not removed:
        raise UserError("removed: no hook point given to remove directions at")
    if unknown := sorted({*removed, end} - set(network.hooks)):
        raise UserError(f"{unknown[0]}: no such hook point; there are {', '.join(network.hooks)}")
    order = sorted(removed, key=network.hooks.index)
    clean = network.clean(inputs, capture=order, final=False)
    value = removed[order[0]].remove_from(clean.activations[order[0]])
    for hook, next_hook in itertools.pairwise(order):
        later = network.continue_from(clean, hook, value, ends=[next_hook, end])
        # if there is no path around the next hook point, its activation alone determines the one at the end
        through_next = network.continue_from(clean, next_hook, later[next_hook], ends=[end])
        if not torch.allclose(through_next[end], later[end], rtol=1e-3, atol=1e-3 * float(later[end].abs().max())):
            raise UserError(
                f"{next_hook}: the network has a path around it, on which the directions removed at {hook} return; "
                "remove directions at hook points that every path passes through"
            )
        value = removed[next_hook].remove_from(later[next_hook])
    return network.continue_from(clean, order[-1], value, ends=[end])[end]


@torch.no_grad()
def losses_without(
    network: Network,
    batches: Sequence[tuple[Tensor, Any]],
    *,
    removed: Mapping[str, Mapping[str, Directions]],
    end: str,
    tasks: Mapping[str, TaskLoss],
) -> RemovalLosses:
    """Return every task's mean loss, for the intact network and without each module.

    Args:
        batches: pairs of inputs and targets; the losses read the targets.
        removed: the directions to remove at each hook point, for each module by name.
        end: the hook point whose activation the losses read.
    """
    if not batches:
        raise UserError("no data: at least one batch is needed")
    names = ["", *removed]  # "" stands for the intact network
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
    means = {name: {task: total / samples for task, total in by_task.items()} for name, by_task in sums.items()}
    return RemovalLosses(means.pop(""), means)
