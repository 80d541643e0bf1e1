"""What a network does at and behind a hook point, in second moments: of the activations, and of the Jacobian to later hook points.

Everything is added up batch by batch in float64, on the network's device and whatever its own type. Row vectors throughout: an activation
f has shape [d], a map is applied as f @ matrix. A sample is a row of the inputs; activations are [sample, d] or [sample, pos, d].
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
    """Of the activations at a hook point, over samples and positions; float64."""

    mean: Float[Tensor, "d"]
    """μ."""
    covariance: Float[Tensor, "d d"]
    """E[(f − μ)(f − μ)ᵀ], divided by n."""
    n: int
    """Samples × positions."""

    @property
    def gram(self) -> Float[Tensor, "d d"]:
        """E[f fᵀ]."""
        return self.covariance + torch.outer(self.mean, self.mean)

    @property
    def augmented(self) -> Float[Tensor, "d1 d1"]:
        """E[(1, f)(1, f)ᵀ]: the Gram with a constant coordinate in front, which stands for the biases."""
        ahead = torch.cat([torch.ones_like(self.mean[:1]), self.mean])
        return torch.cat([ahead[None], torch.cat([self.mean[:, None], self.gram], 1)])


class Target(NamedTuple):
    """Coordinates at a later hook point whose Jacobian is looked at: f @ matrix."""

    hook: str
    matrix: Float[Tensor, "d k"]


def check_order(network: Network, hooks: Sequence[str]) -> None:
    """Raises UserError unless these hook points follow one another in the network."""
    for name in hooks:
        if name not in network.hooks:
            raise UserError(f"{name}: no such hook point; there are {', '.join(network.hooks)}")
    for a, b in itertools.pairwise(hooks):
        if network.hooks.index(a) >= network.hooks.index(b):
            raise UserError(f"hook points {a}, {b}: the second must lie behind the first in the network")


def check_data(batches: Sequence[Tensor]) -> None:
    """Raises UserError where there is no sample."""
    if not sum(len(inputs) for inputs in batches):
        raise UserError("no data: at least one batch with one sample is needed")


def moments(network: Network, batches: Sequence[Tensor], *, hooks: Sequence[str]) -> dict[str, Moments]:
    """Mean and covariance of the activations at each of the hook points, in one clean pass a batch.

    Sums are taken about the first batch's mean, so that a mean far from zero costs no digits.

    Raises:
        UserError: no data, a hook point that does not exist.
    """
    check_data(batches)
    shift: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    n = dict.fromkeys(hooks, 0)
    for inputs in track(batches, "moments of the activations"):
        if not len(inputs):
            continue
        found = network.clean(inputs, capture=hooks, final=False).activations
        for hook in hooks:
            rows = found[hook].flatten(0, -2).double()
            if hook not in shift:
                shift[hook] = rows.mean(0)
                first[hook], second[hook] = torch.zeros_like(rows[0]), rows.new_zeros(rows.shape[1], rows.shape[1])
            rows = rows - shift[hook]
            first[hook] += rows.sum(0)
            second[hook].addmm_(rows.T, rows)
            n[hook] += len(rows)
    means = {hook: first[hook] / n[hook] for hook in hooks}
    return {
        hook: Moments(
            shift[hook] + means[hook], second[hook] / n[hook] - torch.outer(means[hook], means[hook]), n[hook]
        )
        for hook in hooks
    }


def jacobian_gram(
    network: Network, batches: Sequence[Tensor], *, start: str, targets: Sequence[Target], probes: int | None, seed: int
) -> Float[Tensor, "d d"]:
    """M' = Σ_targets 1/(N T) Σ_x Σ_{t,i} Σ_s (∂f̂_{t,i}/∂f_s)(∂f̂_{t,i}/∂f_s)ᵀ, with f̂ = f @ matrix at a target, T its positions; float64.

    With `probes` = r: signs φ_{t,i} = ±1 drawn at random for every sample, one gradient g_s = ∂(Σ_{t,i} φ_{t,i} f̂_{t,i})/∂f_s, and
    Σ_s g_s g_sᵀ, whose mean over the signs is the sum wanted; the average of r of those. Unbiased, and the error falls with samples × r.
    One backward pass a batch and probe. With None: exact, a backward pass for every (t, i).

    Raises:
        UserError: no data, no target, or a target that does not lie behind the start.
    """
    check_data(batches)
    if not targets:
        raise UserError(f"from {start}: no hook point given to go to")
    for target in targets:
        check_order(network, (start, target.hook))
    assert probes is None or probes > 0
    generator = torch.Generator().manual_seed(seed)
    total: Tensor | None = None
    n = 0
    for inputs in track(batches, f"Jacobians from {start}"):
        if not len(inputs):
            continue
        way = Way(network, network.clean(inputs, capture=(start,), final=False), start, [t.hook for t in targets])
        if total is None:
            total = way.value.new_zeros(way.value.shape[-1], way.value.shape[-1], dtype=torch.float64)
        if probes is None:
            for target in targets:
                _add_exact(total, way, target)
        else:
            for _ in range(probes):
                _add_probe(total, way, targets, generator, share=1 / probes)
        n += len(inputs)
    assert total is not None
    return total / n


class Way:
    """From a batch's activation at a hook point to those at later ones, with the graph between."""

    def __init__(self, network: Network, clean: Clean, start: str, ends: Sequence[str]) -> None:
        self.value = clean.activations[start].detach().requires_grad_()
        with torch.enable_grad():
            self.ends = network.onward(clean, start, self.value, ends=ends)

    def pull(self, cotangents: dict[str, Tensor]) -> Tensor:
        """Σ_ends ⟨cotangent, end⟩ differentiated by the value; the graph stays. An end that does not depend on the value adds nothing."""
        hanging = [hook for hook in cotangents if self.ends[hook].requires_grad]
        if not hanging:
            return torch.zeros_like(self.value)
        (found,) = torch.autograd.grad(
            [self.ends[hook] for hook in hanging],
            [self.value],
            [cotangents[hook].to(self.ends[hook].dtype) for hook in hanging],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return found


def positions(activation: Tensor) -> int:
    """T: 1 where there is no dimension of positions."""
    return activation[0, ..., 0].numel()


def _add_probe(total: Tensor, way: Way, targets: Sequence[Target], generator: torch.Generator, *, share: float) -> None:
    cotangents: dict[str, Tensor] = {}
    for hook, matrix in targets:
        end = way.ends[hook]
        signs = 2.0 * torch.randint(2, (*end.shape[:-1], matrix.shape[1]), generator=generator) - 1
        along = signs.to(matrix) @ matrix.T / positions(end) ** 0.5
        cotangents[hook] = cotangents[hook] + along if hook in cotangents else along
    rows = way.pull(cotangents).flatten(0, -2).double()
    total.addmm_(rows.T, rows, alpha=share)


def _add_exact(total: Tensor, way: Way, target: Target) -> None:
    hook, matrix = target
    end = way.ends[hook]
    places = end[0, ..., 0].shape
    for place in range(positions(end)):
        for column in track(matrix.T, "backward passes"):
            along = torch.zeros(len(end), positions(end), len(column), dtype=matrix.dtype, device=end.device)
            along[:, place] = column
            rows = way.pull({hook: along.unflatten(1, places) if places else along[:, 0]}).flatten(0, -2).double()
            total.addmm_(rows.T, rows, alpha=1 / positions(end))
