"""Bases beside each other on one network: their spectra, the directions and edges that are needed for a given loss."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from crux.degeneracy.ablation import EdgeAblation, Loss, NodeAblation, clean_loss, counts, least
from crux.degeneracy.basis import Basis, neurons, principal_components, random_rotation
from crux.degeneracy.edges import Edges, edges
from crux.degeneracy.grams import Moments
from crux.degeneracy.interaction_basis import interaction_bases, interaction_basis
from crux.degeneracy.networks.network import Network


class Plan(NamedTuple):
    """What is compared; the numbers are explained in schema_degeneracy.Compare."""

    bases: Sequence[str]
    hooks: Sequence[str]
    ahead: int | None
    probes: int | None
    threshold: float
    points: int | None
    within: float
    directions: int | None
    edge_samples: int | None
    edge_ablation: Sequence[str]
    seed: int


class Curve(NamedTuple):
    """A loss over how much is kept."""

    size: int
    """All there is."""
    losses: dict[int, float]
    """By the number kept, rising."""
    needed: int | None
    """For a loss within the limit; None: all are too few."""


class Compared(NamedTuple):
    """Each by the name of the basis, then along the hook points; the last hook point's basis is every one's."""

    bases: dict[str, list[Basis]]
    clean: float
    """Loss of the network as it is."""
    nodes: dict[str, list[Curve]]
    """At each hook point but the last."""
    edges: dict[str, list[Edges]]
    """From each hook point to the next."""
    edge_curves: dict[str, list[Curve]]
    """The same, of the bases with edge ablation."""

    def edges_needed(self, name: str) -> int | None:
        """In all layers together."""
        needed = [curve.needed for curve in self.edge_curves[name]]
        return sum(n for n in needed if n is not None) if None not in needed else None


def logits_basis(hook: str, at: Moments, *, W_U: Float[Tensor, "d_vocab d"], threshold: float) -> Basis:
    """The principal components of the logits (less their mean over the vocabulary, which no prediction hangs on) as functions of the
    final hidden state: the interaction basis whose Jacobian Gram is that of W_U. A bias or a soft-cap behind them does not enter."""
    W = W_U.to(at.mean)
    W = W - W.mean(0)
    return interaction_basis(hook, "logits", at, W.T @ W, threshold=threshold)


def every_basis(
    network: Network,
    batches: Sequence[Tensor],
    *,
    at: Mapping[str, Moments],
    plan: Plan,
    last: Callable[[str, Moments], Basis],
) -> dict[str, list[Basis]]:
    """The bases that the plan names, along the hook points; `at` are the activations' moments there.

    Raises:
        UserError: as `interaction_bases`.
    """
    end = last(plan.hooks[-1], at[plan.hooks[-1]])
    plain: Mapping[str, Callable[[str], Basis]] = {
        "neuron": lambda hook: neurons(hook, at[hook]),
        "random": lambda hook: random_rotation(hook, at[hook], seed=plan.seed),
        "pca": lambda hook: principal_components(hook, at[hook], threshold=plan.threshold),
    }
    reach = {"local": 1, "next": plan.ahead, "global": None}
    found: dict[str, list[Basis]] = {}
    for kind in plan.bases:
        if kind in plain:
            found[kind] = [*(plain[kind](hook) for hook in plan.hooks[:-1]), end]
            continue
        along = interaction_bases(
            network,
            batches,
            hooks=plan.hooks,
            ahead=reach[kind],
            last=end,
            probes=plan.probes,
            threshold=plan.threshold,
            seed=plan.seed,
        )
        found[along[0].name] = along
    return found


def compare(
    network: Network,
    bases: Mapping[str, list[Basis]],
    *,
    plan: Plan,
    found_on: Sequence[Tensor],
    judged_on: Sequence[Tensor],
    end: str,
    loss: Loss,
    progress: Callable[[str], None],
) -> Compared:
    """Ablates nodes and edges in every basis.

    Args:
        found_on: batches for the edges.
        judged_on: batches for the ablation.
        end: hook point that the loss reads.
        progress: is told what has been done.

    Raises:
        UserError: no data.
    """
    whole = clean_loss(network, judged_on, end=end, loss=loss)
    limit = whole + plan.within
    nodes: dict[str, list[Curve]] = {}
    between: dict[str, list[Edges]] = {}
    curves: dict[str, list[Curve]] = {}
    few = found_on if plan.edge_samples is None else first_samples(found_on, plan.edge_samples)
    for name, along in bases.items():
        nodes[name] = [
            curve(ablation.loss, ablation.size, limit=limit, whole=True)
            for basis in along[:-1]
            for ablation in [NodeAblation(network, judged_on, basis=basis, end=end, loss=loss)]
        ]
        strongest = [basis.first(plan.directions) if plan.directions is not None else basis for basis in along]
        between[name] = edges(network, few, bases=strongest, points=plan.points, probes=None, side=None, seed=plan.seed)
        if kind_of(name) in plan.edge_ablation:
            curves[name] = []
        for pair, each in zip(itertools.pairwise(strongest), between[name], strict=True):
            if name in curves:
                ablation = EdgeAblation(network, judged_on, bases=pair, strength=each.strength, end=end, loss=loss)
                curves[name].append(curve(ablation.loss, ablation.size, limit=limit, whole=False))
        progress(name)
    return Compared(dict(bases), whole, nodes, between, curves)


def kind_of(name: str) -> str:
    """`next` of `next-3`."""
    return name.partition("-")[0]


def curve(loss: Callable[[int], float], size: int, *, limit: float, whole: bool) -> Curve:
    """How many are needed, and every loss that was measured on the way; with `whole` at all the powers of two, too."""
    losses: dict[int, float] = {}

    def remembered(n: int) -> float:
        if n not in losses:
            losses[n] = loss(n)
        return losses[n]

    needed = least(remembered, size=size, limit=limit)
    for n in counts(size) if whole else (0, size):
        remembered(n)
    return Curve(size, dict(sorted(losses.items())), needed)


def first_samples(batches: Sequence[Tensor], n: int) -> list[Tensor]:
    """The first n samples, in the same batches."""
    found: list[Tensor] = []
    for batch in batches:
        if n > 0:
            found.append(batch[:n])
            n -= len(found[-1])
    return found


def share_of_edges(strength: Float[Tensor, "n_to n_from"], *, share: float) -> int:
    """How many of the strongest edges make up so much of all."""
    total = strength.flatten().sort(descending=True).values.cumsum(0)
    return int((total < share * total[-1]).sum()) + 1
