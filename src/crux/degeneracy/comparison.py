"""Comparison of several bases on one network: the directions and edges that each needs to keep the loss within a limit."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.progress import track
from crux.degeneracy.ablation import (
    EdgeAblation,
    NodeAblation,
    SampleLoss,
    clean_loss,
    curve_counts,
    smallest_sufficient,
)
from crux.degeneracy.basis import Basis, neuron_basis, pca_basis, random_basis
from crux.degeneracy.basis_options import CompareOptions
from crux.degeneracy.edges import Edges, interaction_edges
from crux.degeneracy.grams import Moments
from crux.degeneracy.interaction_basis import basis_name, interaction_bases, interaction_basis
from crux.degeneracy.networks.network import Network
from crux.degeneracy.packing import ComputeOnce, pack, unpack


class AblationLoss(NamedTuple):
    """The loss that decides how many directions and edges are needed, and the samples that it is measured on."""

    name: str
    """Name and unit."""
    per_sample: SampleLoss
    end: str
    """The hook point whose activation the loss reads."""
    batches: Sequence[Tensor]
    """Samples that were not used to find the bases."""


class AblationCurve(NamedTuple):
    """The loss as a function of the number of directions or edges kept."""

    size: int
    """Number of all directions or edges."""
    losses: dict[int, float]
    """Loss for each number kept, in ascending order."""
    needed: int | None
    """The number needed for a loss within the limit; None: even all are too few."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The curve as tensors, for `from_tensors`."""
        losses = torch.tensor(list(self.losses.items()), dtype=torch.float64)
        return {"losses": losses, "counts": torch.tensor([self.size, -1 if self.needed is None else self.needed])}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "AblationCurve":
        """Return the curve whose `tensors` are given."""
        size, needed = tensors["counts"].tolist()
        return cls(size, {int(n): loss for n, loss in tensors["losses"].tolist()}, None if needed < 0 else needed)


class BasisComparison(NamedTuple):
    """Bases with their edges and ablation curves, keyed by the name of the basis. The basis at the last hook point is shared by all."""

    bases: dict[str, list[Basis]]
    """One per hook point."""
    clean: float
    """Loss of the unmodified network."""
    nodes: dict[str, list[AblationCurve]]
    """Curve of the directions at each hook point except the last."""
    edges: dict[str, list[Edges]]
    """Edges from each hook point to the next."""
    edge_curves: dict[str, list[AblationCurve]]
    """Curve of the edges from each hook point to the next, for the bases with edge ablation."""

    def total_edges_needed(self, name: str) -> int | None:
        """Return the number of edges that a basis needs in all layers together; None: too few in some layer."""
        needed = [curve.needed for curve in self.edge_curves[name]]
        return sum(n for n in needed if n is not None) if None not in needed else None


def logits_basis(hook: str, moments: Moments, *, W_U: Float[Tensor, "d_vocab d"], threshold: float) -> Basis:
    """Return the basis of the final hidden state whose coordinates are the principal components of the logits.

    It is the interaction basis with the Jacobian Gram of W_U. The logits' mean over the vocabulary is subtracted, since no prediction
    depends on it. A bias or soft-cap of the logits is ignored.
    """
    W = W_U.to(moments.mean)
    W = W - W.mean(0)
    return interaction_basis(hook, "logits", moments, W.T @ W, threshold=threshold)


def find_bases(
    network: Network,
    batches: Sequence[Tensor],
    *,
    moments_at: Mapping[str, Moments],
    options: CompareOptions,
    last: Basis,
    seed: int,
    once: ComputeOnce,
) -> dict[str, list[Basis]]:
    """Return the bases that the options name, each as a list over the hook points.

    Args:
        moments_at: moments of the activations at each hook point.
        last: the basis at the last hook point, which all share.
        once: returns saved tensors instead of computing them again after the run was interrupted; used for each interaction basis.

    Raises:
        UserError: see `interaction_bases`.
    """
    hooks = options.hooks[:-1]
    simple_bases: Mapping[str, Callable[[str], Basis]] = {
        "neuron": lambda hook: neuron_basis(hook, moments_at[hook]),
        "random": lambda hook: random_basis(hook, moments_at[hook], seed=seed),
        "pca": lambda hook: pca_basis(hook, moments_at[hook], threshold=options.threshold),
    }
    ahead_of_kind = {"local": 1, "next": options.ahead, "global": None}

    def find_interaction_bases_once(ahead: int | None) -> Iterator[Basis]:
        def compute() -> dict[str, Tensor]:
            bases = interaction_bases(
                network, batches, hooks=options.hooks, ahead=ahead, last=last, probes=options.probes,
                threshold=options.threshold, seed=seed,
            )  # fmt: skip
            return {k: v for basis in bases[:-1] for k, v in pack(basis._asdict(), prefix=f"{basis.hook}/").items()}

        name = basis_name(ahead)
        tensors = once(f"bases_{name}", compute)
        for hook in hooks:
            yield unpack(Basis, tensors, prefix=f"{hook}/", device=last.mean.device, hook=hook, name=name)

    bases: dict[str, list[Basis]] = {}
    for kind in track(options.bases, "bases"):
        if kind in simple_bases:
            bases[kind] = [*map(simple_bases[kind], hooks), last]
        else:
            ahead = ahead_of_kind[kind]
            bases[basis_name(ahead)] = [*find_interaction_bases_once(ahead), last]
    return bases


def ablate_bases(
    network: Network,
    bases: Mapping[str, list[Basis]],
    *,
    options: CompareOptions,
    seed: int,
    found_on: Sequence[Tensor],
    loss: AblationLoss,
    once: ComputeOnce,
    report_done: Callable[[int], None],
) -> BasisComparison:
    """Find the edges of every basis, and ablate its directions and edges.

    Args:
        found_on: batches on which the edges are found.
        once: returns saved tensors instead of computing them again after the run was interrupted; used for the edges of each basis and
            for each ablation curve.
        report_done: called with the number of finished bases.

    Raises:
        UserError: if there is no data.
    """
    per_sample, end, batches = loss.per_sample, loss.end, loss.batches
    clean = clean_loss(network, batches, end=end, loss=per_sample)
    limit = clean + options.within
    nodes: dict[str, list[AblationCurve]] = {}
    edges_by_basis: dict[str, list[Edges]] = {}
    curves: dict[str, list[AblationCurve]] = {}

    def measure_curve_once(
        name: str, build: Callable[[], NodeAblation | EdgeAblation], *, all_powers: bool
    ) -> AblationCurve:
        def compute() -> dict[str, Tensor]:
            ablation = build()
            return measure_curve(ablation.loss, ablation.size, limit=limit, all_powers=all_powers).tensors

        return AblationCurve.from_tensors(once(name, compute))

    for done, (name, per_hook) in enumerate(track(bases.items(), "comparing bases"), 1):
        nodes[name] = [
            measure_curve_once(
                f"nodes_{name}_{k}",
                lambda basis=basis: NodeAblation(network, batches, basis=basis, end=end, loss=per_sample),
                all_powers=True,
            )
            for k, basis in enumerate(per_hook[:-1])
        ]
        strongest = [
            basis.strongest(options.directions) if options.directions is not None else basis for basis in per_hook
        ]
        edges_by_basis[name] = find_edges_once(
            network, found_on, bases=strongest, options=options, seed=seed, once=once, name=name
        )
        if basis_kind(name) in options.edge_ablation:
            curves[name] = [
                measure_curve_once(
                    f"edge_losses_{name}_{k}",
                    lambda pair=pair, edges=edges: EdgeAblation(
                        network, batches, bases=pair, strength=edges.strength, end=end, loss=per_sample
                    ),
                    all_powers=False,
                )
                for k, (pair, edges) in enumerate(zip(itertools.pairwise(strongest), edges_by_basis[name], strict=True))
            ]
        report_done(done)
    return BasisComparison(dict(bases), clean, nodes, edges_by_basis, curves)


def find_edges_once(
    network: Network,
    batches: Sequence[Tensor],
    *,
    bases: Sequence[Basis],
    options: CompareOptions,
    seed: int,
    once: ComputeOnce,
    name: str,
) -> list[Edges]:
    """Return the edges from each basis to the next, found on the first `edge_samples` samples; computed once per run."""
    samples = batches if options.edge_samples is None else take_first_samples(batches, options.edge_samples)

    def compute() -> dict[str, Tensor]:
        all_edges = interaction_edges(
            network, samples, bases=bases, points=options.points, probes=None, mode=None, seed=seed
        )
        return {k: v for edges in all_edges for k, v in pack(edges._asdict(), prefix=f"{edges.source}/").items()}

    tensors, device = once(f"edges_{name}", compute), bases[0].mean.device
    return [
        unpack(Edges, tensors, prefix=f"{source.hook}/", device=device, source=source.hook, target=target.hook)
        for source, target in itertools.pairwise(bases)
    ]


def basis_kind(name: str) -> str:
    """Return the kind of a basis from its name, for example `next` for `next-3`."""
    return name.partition("-")[0]


def measure_curve(loss: Callable[[int], float], size: int, *, limit: float, all_powers: bool) -> AblationCurve:
    """Find the number needed for a loss within the limit, and return it with all losses that were measured.

    Args:
        loss: the loss for a number kept.
        all_powers: also measure the loss at every power of two, for a figure of the whole curve; otherwise also at 0 and `size`.
    """
    losses: dict[int, float] = {}

    def measure(n: int) -> float:
        if n not in losses:
            losses[n] = loss(n)
        return losses[n]

    needed = smallest_sufficient(measure, size=size, limit=limit)
    for n in curve_counts(size) if all_powers else (0, size):
        measure(n)
    return AblationCurve(size, dict(sorted(losses.items())), needed)


def take_first_samples(batches: Sequence[Tensor], n: int) -> list[Tensor]:
    """Return the first n samples, in the same batches."""
    first: list[Tensor] = []
    for batch in batches:
        if n > 0:
            first.append(batch[:n])
            n -= len(first[-1])
    return first


def count_edges_for_share(strength: Float[Tensor, "n_to n_from"], *, share: float) -> int:
    """Return how many of the strongest edges make up this share of the sum of all edges."""
    sums = strength.flatten().sort(descending=True).values.cumsum(0)
    return int((sums < share * sums[-1]).sum()) + 1
