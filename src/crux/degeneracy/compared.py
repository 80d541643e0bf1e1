"""Bases beside each other on one network: their spectra, the directions and edges that are needed for a given loss."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.progress import track
from crux.degeneracy.ablation import EdgeAblation, Loss, NodeAblation, clean_loss, counts, least
from crux.degeneracy.basis import Basis, neurons, principal_components, random_rotation
from crux.degeneracy.basis_options import Compare
from crux.degeneracy.edges import Edges, edges
from crux.degeneracy.grams import Moments
from crux.degeneracy.interaction_basis import basis_name, interaction_bases, interaction_basis
from crux.degeneracy.networks.network import Network
from crux.degeneracy.packing import Once, pack, unpack


class AblationLoss(NamedTuple):
    """The loss that decides how many directions and edges are needed."""

    name: str
    """With its unit."""
    of: Loss
    end: str
    """Hook point whose activation it reads."""
    batches: Sequence[Tensor]
    """Samples that no basis was found on."""


class Curve(NamedTuple):
    """A loss over how much is kept."""

    size: int
    """All there is."""
    losses: dict[int, float]
    """By the number kept, rising."""
    needed: int | None
    """For a loss within the limit; None: all are too few."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its numbers as tensors; the other way round see `from_tensors`."""
        losses = torch.tensor(list(self.losses.items()), dtype=torch.float64)
        return {"losses": losses, "counts": torch.tensor([self.size, -1 if self.needed is None else self.needed])}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Curve":
        size, needed = tensors["counts"].tolist()
        return cls(size, {int(n): loss for n, loss in tensors["losses"].tolist()}, None if needed < 0 else needed)


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
    """The principal components of the logits (less their mean over the vocabulary, on which no prediction depends) as functions of the
    final hidden state: the interaction basis whose Jacobian Gram is that of W_U. A bias or a soft-cap behind them does not enter."""
    W = W_U.to(at.mean)
    W = W - W.mean(0)
    return interaction_basis(hook, "logits", at, W.T @ W, threshold=threshold)


def every_basis(
    network: Network,
    batches: Sequence[Tensor],
    *,
    at: Mapping[str, Moments],
    options: Compare,
    last: Basis,
    seed: int,
    once: Once,
) -> dict[str, list[Basis]]:
    """Return the bases that the options name, along the hook points.

    Args:
        at: the activations' moments at the hook points.
        last: every one's basis at the last hook point.
        once: keeps each interaction basis.

    Raises:
        UserError: as `interaction_bases`.
    """
    hooks = options.hooks[:-1]
    plain: Mapping[str, Callable[[str], Basis]] = {
        "neuron": lambda hook: neurons(hook, at[hook]),
        "random": lambda hook: random_rotation(hook, at[hook], seed=seed),
        "pca": lambda hook: principal_components(hook, at[hook], threshold=options.threshold),
    }
    reach = {"local": 1, "next": options.ahead, "global": None}

    def interaction(ahead: int | None) -> Iterator[Basis]:
        def compute() -> dict[str, Tensor]:
            along = interaction_bases(
                network, batches, hooks=options.hooks, ahead=ahead, last=last, probes=options.probes,
                threshold=options.threshold, seed=seed,
            )  # fmt: skip
            return {k: v for basis in along[:-1] for k, v in pack(basis._asdict(), prefix=f"{basis.hook}/").items()}

        name = basis_name(ahead)
        kept = once(f"bases_{name}", compute)
        for hook in hooks:
            yield unpack(Basis, kept, prefix=f"{hook}/", device=last.mean.device, hook=hook, name=name)

    found: dict[str, list[Basis]] = {}
    for kind in track(options.bases, "bases"):
        if kind in plain:
            found[kind] = [*map(plain[kind], hooks), last]
        else:
            found[basis_name(reach[kind])] = [*interaction(reach[kind]), last]
    return found


def compare(
    network: Network,
    bases: Mapping[str, list[Basis]],
    *,
    options: Compare,
    seed: int,
    found_on: Sequence[Tensor],
    loss: AblationLoss,
    once: Once,
    report_done: Callable[[int], None],
) -> Compared:
    """Ablate nodes and edges in every basis.

    Args:
        found_on: batches for the edges.
        once: keeps the edges of each basis and each ablation's curve.
        report_done: is called with the number of bases that are done.

    Raises:
        UserError: no data.
    """
    of, end, batches = loss.of, loss.end, loss.batches
    clean = clean_loss(network, batches, end=end, loss=of)
    limit = clean + options.within
    nodes: dict[str, list[Curve]] = {}
    between: dict[str, list[Edges]] = {}
    curves: dict[str, list[Curve]] = {}

    def kept_curve(name: str, ablation: Callable[[], NodeAblation | EdgeAblation], *, whole: bool) -> Curve:
        def compute() -> dict[str, Tensor]:
            made = ablation()
            return curve(made.loss, made.size, limit=limit, whole=whole).tensors

        return Curve.from_tensors(once(name, compute))

    for done, (name, along) in enumerate(track(bases.items(), "comparing bases"), 1):
        nodes[name] = [
            kept_curve(
                f"nodes_{name}_{k}",
                lambda basis=basis: NodeAblation(network, batches, basis=basis, end=end, loss=of),
                whole=True,
            )
            for k, basis in enumerate(along[:-1])
        ]
        strongest = [basis.first(options.directions) if options.directions is not None else basis for basis in along]
        between[name] = kept_edges(network, found_on, bases=strongest, options=options, seed=seed, once=once, name=name)
        if kind_of(name) in options.edge_ablation:
            curves[name] = [
                kept_curve(
                    f"edge_losses_{name}_{k}",
                    lambda pair=pair, each=each: EdgeAblation(
                        network, batches, bases=pair, strength=each.strength, end=end, loss=of
                    ),
                    whole=False,
                )
                for k, (pair, each) in enumerate(zip(itertools.pairwise(strongest), between[name], strict=True))
            ]
        report_done(done)
    return Compared(dict(bases), clean, nodes, between, curves)


def kept_edges(
    network: Network,
    batches: Sequence[Tensor],
    *,
    bases: Sequence[Basis],
    options: Compare,
    seed: int,
    once: Once,
    name: str,
) -> list[Edges]:
    """Return the edges from each basis to the next, found on the first samples; a piece of work."""
    few = batches if options.edge_samples is None else first_samples(batches, options.edge_samples)

    def compute() -> dict[str, Tensor]:
        found = edges(network, few, bases=bases, points=options.points, probes=None, side=None, seed=seed)
        return {k: v for each in found for k, v in pack(each._asdict(), prefix=f"{each.source}/").items()}

    kept, device = once(f"edges_{name}", compute), bases[0].mean.device
    return [
        unpack(Edges, kept, prefix=f"{a.hook}/", device=device, source=a.hook, target=b.hook)
        for a, b in itertools.pairwise(bases)
    ]


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
