"""Second moments of a network's activations (activation Gram), and of its Jacobian to later hook points (Jacobian Gram).

Sums are accumulated batch by batch in float64, on the network's device, whatever the network's dtype. Vectors are rows: an activation f
has shape [d], and a linear map is applied as f @ matrix. One sample is one row of the inputs; activations are [sample, d] or
[sample, pos, d].
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.config.progress import track
from crux.degeneracy.networks.network import Network
from crux.subjects.subject import Clean


class Moments(NamedTuple):
    """Mean and covariance of the activations at a hook point, over samples and positions; float64."""

    mean: Float[Tensor, "d"]
    """μ."""
    covariance: Float[Tensor, "d d"]
    """E[(f − μ)(f − μ)ᵀ], divided by n."""
    n: int
    """Number of samples × positions."""

    @property
    def gram(self) -> Float[Tensor, "d d"]:
        """The activation Gram E[f fᵀ]."""
        return self.covariance + torch.outer(self.mean, self.mean)

    @property
    def augmented(self) -> Float[Tensor, "d1 d1"]:
        """The Gram E[(1, f)(1, f)ᵀ] of the activations with a constant first coordinate, which stands for the biases."""
        first_row = torch.cat([torch.ones_like(self.mean[:1]), self.mean])
        return torch.cat([first_row[None], torch.cat([self.mean[:, None], self.gram], 1)])


class Target(NamedTuple):
    """The coordinates f @ matrix at a later hook point; it is their Jacobian that is measured."""

    hook: str
    matrix: Float[Tensor, "d k"]


def check_hooks_in_order(network: Network, hooks: Sequence[str]) -> None:
    """Raise UserError unless the network has these hook points, in this order."""
    for name in hooks:
        if name not in network.hooks:
            raise UserError(f"{name}: no such hook point; there are {', '.join(network.hooks)}")
    for earlier, later in itertools.pairwise(hooks):
        if network.hooks.index(earlier) >= network.hooks.index(later):
            raise UserError(f"hook points {earlier}, {later}: the second must come after the first in the network")


def check_data(batches: Sequence[Tensor]) -> None:
    """Raise UserError if the batches contain no sample."""
    if not sum(len(inputs) for inputs in batches):
        raise UserError("no data: at least one batch with one sample is needed")


def moments(network: Network, batches: Sequence[Tensor], *, hooks: Sequence[str]) -> dict[str, Moments]:
    """Return the mean and covariance of the activations at each hook point, with one clean pass per batch.

    The first batch's mean is subtracted before summation, so that a mean far from zero costs no precision.

    Raises:
        UserError: if there is no data, or no such hook point.
    """
    check_data(batches)
    shift: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    outer_products: dict[str, Tensor] = {}
    n = dict.fromkeys(hooks, 0)
    for inputs in track(batches, "moments of the activations"):
        if not len(inputs):
            continue
        activations = network.clean(inputs, capture=hooks, final=False).activations
        for hook in hooks:
            rows = activations[hook].flatten(0, -2).double()
            if hook not in shift:
                shift[hook] = rows.mean(0)
                sums[hook] = torch.zeros_like(rows[0])
                outer_products[hook] = rows.new_zeros(rows.shape[1], rows.shape[1])
            rows = rows - shift[hook]
            sums[hook] += rows.sum(0)
            outer_products[hook].addmm_(rows.T, rows)
            n[hook] += len(rows)
    moments_at: dict[str, Moments] = {}
    for hook in hooks:
        mean = sums[hook] / n[hook]  # relative to the shift
        covariance = outer_products[hook] / n[hook] - torch.outer(mean, mean)
        moments_at[hook] = Moments(shift[hook] + mean, covariance, n[hook])
    return moments_at


def jacobian_gram(
    network: Network, batches: Sequence[Tensor], *, start: str, targets: Sequence[Target], probes: int | None, seed: int
) -> Float[Tensor, "d d"]:
    """Return the Jacobian Gram M' from a hook point to later coordinates (Bushnaq et al. 2405.10928); [d, d], float64.

        M' = Σ_targets 1/(N T) Σ_x Σ_{t,i} Σ_s (∂f̂_{t,i}/∂f_s)(∂f̂_{t,i}/∂f_s)ᵀ,   f̂ = f @ matrix at the target,

    with N samples x, positions s at the start, and T positions t and coordinates i at the target.

    Args:
        start: the hook point of f.
        probes: number of random probes per sample; None: compute M' exactly, with one backward pass per (t, i). For each probe, random
            signs φ_{t,i} = ±1 give the gradient g_s = ∂(Σ_{t,i} φ_{t,i} f̂_{t,i})/∂f_s in one backward pass per batch. The mean of
            Σ_s g_s g_sᵀ over the signs is the sum above, so the estimate is unbiased; its error falls with samples × probes.

    Raises:
        UserError: if there is no data or no target, or a target does not come after the start.
    """
    check_data(batches)
    if not targets:
        raise UserError(f"from {start}: no target hook point given")
    for target in targets:
        check_hooks_in_order(network, (start, target.hook))
    assert probes is None or probes > 0
    generator = torch.Generator().manual_seed(seed)
    total: Tensor | None = None
    n = 0
    for inputs in track(batches, f"Jacobians from {start}"):
        if not len(inputs):
            continue
        clean = network.clean(inputs, capture=(start,), final=False)
        graph = ReplayGraph(network, clean, start, [target.hook for target in targets])
        if total is None:
            width = graph.value.shape[-1]
            total = graph.value.new_zeros(width, width, dtype=torch.float64)
        if probes is None:
            for target in targets:
                _add_exact(total, graph, target)
        else:
            for _ in range(probes):
                _add_probe(total, graph, targets, generator, weight=1 / probes)
        n += len(inputs)
    assert total is not None
    return total / n


class ReplayGraph:
    """The autograd graph from a batch's activation at one hook point, `value`, to those at later hook points, `ends`."""

    def __init__(self, network: Network, clean: Clean, start: str, ends: Sequence[str]) -> None:
        self.value = clean.activations[start].detach().requires_grad_()
        with torch.enable_grad():
            self.ends = network.continue_from(clean, start, self.value, ends=ends)

    def vjp(self, cotangents: dict[str, Tensor]) -> Tensor:
        """Return the vector-Jacobian product ∂(Σ_ends ⟨cotangent, end⟩)/∂value. The graph is kept.

        Ends that do not depend on the value contribute zero.
        """
        dependent = [hook for hook in cotangents if self.ends[hook].requires_grad]
        if not dependent:
            return torch.zeros_like(self.value)
        (gradient,) = torch.autograd.grad(
            [self.ends[hook] for hook in dependent],
            [self.value],
            [cotangents[hook].to(self.ends[hook].dtype) for hook in dependent],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return gradient


def count_positions(activation: Tensor) -> int:
    """Return T, the number of positions of an activation; 1 if it has no position dimension."""
    return activation[0, ..., 0].numel()


def _add_probe(
    total: Tensor, graph: ReplayGraph, targets: Sequence[Target], generator: torch.Generator, *, weight: float
) -> None:
    """Add to the total the outer products of the gradient of randomly signed coordinates at all targets."""
    cotangents: dict[str, Tensor] = {}
    for hook, matrix in targets:
        end = graph.ends[hook]
        signs = 2.0 * torch.randint(2, (*end.shape[:-1], matrix.shape[1]), generator=generator) - 1
        cotangent = signs.to(matrix) @ matrix.T / count_positions(end) ** 0.5
        cotangents[hook] = cotangents[hook] + cotangent if hook in cotangents else cotangent
    rows = graph.vjp(cotangents).flatten(0, -2).double()
    total.addmm_(rows.T, rows, alpha=weight)


def _add_exact(total: Tensor, graph: ReplayGraph, target: Target) -> None:
    """Add to the total the outer products of the gradients of every coordinate at every position of a target."""
    hook, matrix = target
    end = graph.ends[hook]
    n_positions, position_shape = count_positions(end), end[0, ..., 0].shape
    for position in range(n_positions):
        for column in track(matrix.T, "backward passes"):
            cotangent = torch.zeros(len(end), n_positions, len(column), dtype=matrix.dtype, device=end.device)
            cotangent[:, position] = column
            cotangent = cotangent.unflatten(1, position_shape) if position_shape else cotangent[:, 0]
            rows = graph.vjp({hook: cotangent}).flatten(0, -2).double()
            total.addmm_(rows.T, rows, alpha=1 / n_positions)
