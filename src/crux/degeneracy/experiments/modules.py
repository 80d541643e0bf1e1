"""Experiment: find the two modules of a network by Leiden in the interaction basis, and remove each. One of them is a shortcut."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.markdown import markdown_table
from crux.config.progress import track
from crux.degeneracy.ablation import EdgeAblation, smallest_sufficient
from crux.degeneracy.basis import Basis, pca_basis
from crux.degeneracy.basis_options import PlantedModules
from crux.degeneracy.edges import interaction_edges
from crux.degeneracy.experiments.shortcut import (
    HOOKS,
    LOGIT,
    Shortcut,
    ShortcutSamples,
    draw_independent_samples,
    draw_training_samples,
    train_shortcut,
)
from crux.degeneracy.figures.interaction_graph import interaction_graph
from crux.degeneracy.grams import moments
from crux.degeneracy.interaction_basis import interaction_bases
from crux.degeneracy.modularity import NO_MODULE, Modules, cutoff_from_ablation, find_modules
from crux.degeneracy.networks.chain import Chain
from crux.degeneracy.packing import pack, unpack
from crux.degeneracy.removal import RemovalLosses, losses_without, select_directions
from crux.runs.experiment import Experiment, last_row_of_history
from crux.runs.intermediate import compute_once
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result

N_PARTS_FOR_BASES, N_PARTS_FOR_REMOVAL = 40, 60
"""Number of draws of the concept's inputs, and of the shortcut's, from which all combinations form the samples: n² samples each."""


class Graph(NamedTuple):
    """A network's interaction graph in one kind of basis, with its modules."""

    bases: list[Basis]
    """One per layer."""
    strengths: list[Float[Tensor, "_to _from"]]
    """Edges from each layer to the next."""
    kept: list[int]
    """Number of edges needed from each layer to the next."""
    modules: Modules


def result(options: PlantedModules, run: ActiveRun) -> Result:
    """Find the planted modules, and check that without the shortcut's module the network is right where the shortcut misled it."""
    generator = torch.Generator().manual_seed(run.seed)
    network = train_shortcut(generator, run)
    chain = network.chain
    found_on = draw_independent_samples(N_PARTS_FOR_BASES, network.rotation, generator)
    evaluated_on = draw_independent_samples(N_PARTS_FOR_REMOVAL, network.rotation, generator)
    training_inputs = draw_training_samples(len(found_on.x), generator)[0] @ network.rotation
    kind_and_inputs = {
        "interaction basis": ("local", found_on.x),
        "principal components": ("pca", found_on.x),
        "neurons": ("neuron", found_on.x),
        "interaction basis, training data": ("local", training_inputs),
    }
    graphs: dict[str, Graph] = {}
    for done, (name, (kind, x)) in enumerate(track(kind_and_inputs.items(), "interaction graphs"), 1):
        graphs[name] = find_graph(chain, x, kind, options, run=run, piece=f"graph_{done}")
    graph = graphs["interaction basis"]
    losses = remove_each_module(chain, graph, evaluated_on)
    # the shortcut is the module without which the network is misled least
    shortcut = min(losses.without, key=lambda name: losses.without[name]["misled"])
    (concept, *_) = sorted(set(losses.without) - {shortcut})
    checks = [
        Check("modules found", graph.modules.n, 2, 2),
        Check("nodes in another module than the one they were planted in", count_misplaced(network, graph), 0, 0),
        Check(
            "strongest edge between planted modules, share of the strongest",
            find_strongest_cross_edge(network, graph),
            0,
            1e-10,
        ),
        *build_removal_checks(losses, shortcut=shortcut, concept=concept),
    ]
    metrics = {"score": graph.modules.score, "modules": float(graph.modules.n)}
    for name, by_task in losses.without.items():
        role = "shortcut" if name == shortcut else "concept" if name == concept else name
        metrics |= {f"without_{role}/{task}": value for task, value in by_task.items()}
    metrics |= {f"intact/{task}": value for task, value in losses.intact.items()}
    figures = {
        name.replace(", ", "_").replace(" ", "_"): interaction_graph(
            [w.numpy() for w in graph.modules.weights], [m.numpy() for m in graph.modules.labels], layers=HOOKS,
            title=f"{name}, Q = {graph.modules.score:.2f}",
        )
        for name, graph in graphs.items()
    }  # fmt: skip
    arrays = {f"edges/{i}": strength for i, strength in enumerate(graph.strengths)}
    arrays |= {f"module/{hook}": labels for hook, labels in zip(HOOKS, graph.modules.labels, strict=True)}
    return Result(metrics, checks, figures, arrays, format_report(network, graphs, losses, shortcut))


def find_layer_bases(chain: Chain, x: Float[Tensor, "n d"], kind: str, *, threshold: float, seed: int) -> list[Basis]:
    """Return one basis per layer. Neurons that never vary are left out."""
    if kind == "local":
        return interaction_bases(
            chain, [x], hooks=HOOKS, ahead=1, last=None, probes=None, threshold=threshold, seed=seed
        )
    moments_at = moments(chain, [x], hooks=HOOKS)
    if kind == "pca":
        return [pca_basis(hook, moments_at[hook], threshold=threshold) for hook in HOOKS]
    return [
        varying_neuron_basis(hook, moments_at[hook].mean, moments_at[hook].covariance.diagonal(), threshold=threshold)
        for hook in HOOKS
    ]


def varying_neuron_basis(
    hook: str, mean: Float[Tensor, "d"], variance: Float[Tensor, "d"], *, threshold: float
) -> Basis:
    """Return the basis of the neurons that vary, in the network's order."""
    varies = variance > threshold * variance.max()
    C = torch.eye(len(mean), dtype=torch.float64)[:, varies]
    return Basis(hook, "neuron", mean, C, C.T, variance[varies], 0.0, 0.0)


def find_graph(
    chain: Chain, x: Float[Tensor, "n d"], kind: str, options: PlantedModules, *, run: ActiveRun, piece: str
) -> Graph:
    """Find bases, their edges, the number of edges needed, and the modules; computed once per run, except for the modules."""
    compare = options.compare

    def compute() -> dict[str, Tensor]:
        bases = find_layer_bases(chain, x, kind, threshold=compare.threshold, seed=run.seed)
        edges = interaction_edges(chain, [x], bases=bases, points=compare.points, probes=None, mode=None, seed=run.seed)
        clean = chain(x)
        packed: dict[str, Tensor] = {}
        for basis in bases:
            packed |= pack(basis._asdict(), prefix=f"{basis.hook}/")
        for i, (pair, between) in enumerate(zip(itertools.pairwise(bases), edges, strict=True)):
            ablation = EdgeAblation(
                chain, [x], bases=pair, strength=between.strength, end=LOGIT,
                loss=lambda x, y: (y - clean).square()[:, 0] / clean.var(),
            )  # fmt: skip
            needed = smallest_sufficient(ablation.loss, size=ablation.size, limit=compare.within) or ablation.size
            packed |= {f"strength{i}": between.strength, f"needed{i}": torch.tensor(needed)}
        return packed

    tensors = compute_once(run.folder, piece, compute)
    device = torch.device("cpu")
    bases = [unpack(Basis, tensors, prefix=f"{hook}/", device=device, hook=hook, name=kind) for hook in HOOKS]
    strengths = [tensors[f"strength{i}"] for i in range(len(HOOKS) - 1)]
    kept = [int(tensors[f"needed{i}"]) for i in range(len(HOOKS) - 1)]
    cutoffs = [cutoff_from_ablation(s, n) for s, n in zip(strengths, kept, strict=True)]
    modules = find_modules(strengths, cutoffs=cutoffs, constant=None, options=options.modularity, seed=run.seed)
    return Graph(bases, strengths, kept, modules)


def measure_shortcut_shares(network: Shortcut, bases: Sequence[Basis]) -> list[Float[Tensor, "node"]]:
    """Return the share of each direction that lies in the shortcut's subspace: 0 or 1 if the basis separates the modules."""
    shares = []
    for basis in bases:
        inside = (basis.C_pinv @ network.subspaces[basis.hook]).square().sum(2)  # [module, node]
        shares.append(inside[1] / inside.sum(0))
    return shares


def count_misplaced(network: Shortcut, graph: Graph) -> int:
    """Count the nodes with edges that are in the wrong module, under the better of the two matchings of modules.

    Directions that mix both planted modules count as misplaced.
    """
    shares = torch.cat(measure_shortcut_shares(network, graph.bases))
    modules = torch.cat(graph.modules.labels)
    planted = torch.where(shares < 1e-6, 0, torch.where(shares > 1 - 1e-6, 1, 2))  # 2: mixes both modules
    # found module a is the concept's module; Leiden's numbers do not say which of the two it is
    matches = [((modules == a) & (planted == 0)).sum() + ((modules == 1 - a) & (planted == 1)).sum() for a in (0, 1)]
    return int((modules != NO_MODULE).sum() - max(matches))


def find_strongest_cross_edge(network: Shortcut, graph: Graph) -> float:
    """Return the strongest edge between different planted modules, as a share of the strongest edge between the same layers."""
    in_shortcut = [share > 0.5 for share in measure_shortcut_shares(network, graph.bases)]
    return max(
        float((strength * (b[:, None] != a[None])).max() / strength.max())
        for strength, (a, b) in zip(graph.strengths, itertools.pairwise(in_shortcut), strict=True)
    )


def remove_each_module(chain: Chain, graph: Graph, samples: ShortcutSamples) -> RemovalLosses:
    """Return the error rates of the intact network and without each module, removed at every layer.

    `concept`: the prediction differs from the concept. `misled`: the same, among samples where the shortcut contradicts the concept.
    `shortcut`: the prediction differs from the shortcut.
    """
    conflict = samples.concept != samples.shortcut

    def wrong(y: Tensor, truth: Tensor) -> Tensor:
        return ((y[:, 0] > 0) != truth).double()

    tasks = {  # of the targets (concept, shortcut, conflict)
        "concept": lambda y, targets: wrong(y, targets[0]),
        "misled": lambda y, targets: wrong(y, targets[0]) * targets[2] / targets[2].mean(),  # mean over conflicts only
        "shortcut": lambda y, targets: wrong(y, targets[1]),
    }
    removed = {
        f"module {m}": {
            basis.hook: select_directions(basis, labels == m)
            for basis, labels in zip(graph.bases, graph.modules.labels, strict=True)
            if bool((labels == m).any())
        }
        for m in range(graph.modules.n)
    }
    targets = (samples.concept, samples.shortcut, conflict.double())
    return losses_without(chain, [(samples.x, targets)], removed=removed, end=LOGIT, tasks=tasks)


def build_removal_checks(losses: RemovalLosses, *, shortcut: str, concept: str) -> list[Check]:
    """Return the checks of the error rates after each removal."""
    without_shortcut, without_concept = losses.without[shortcut], losses.without[concept]
    return [
        Check("as trained: wrong where the shortcut misleads", losses.intact["misled"], 0.4, 1),
        Check("without the shortcut's module: wrong where the shortcut misleads", without_shortcut["misled"], 0, 0.15),
        Check("without the shortcut's module: wrong in all", without_shortcut["concept"], 0, 0.15),
        Check("without the shortcut's module: against the shortcut", without_shortcut["shortcut"], 0.45, 0.55),
        Check("without the concept's module: wrong in all", without_concept["concept"], 0.45, 0.55),
        Check("without the concept's module: against the shortcut", without_concept["shortcut"], 0, 0.15),
    ]


def format_report(network: Shortcut, graphs: dict[str, Graph], losses: RemovalLosses, shortcut: str) -> str:
    """Return a table of the graphs and a table of the error rates after each removal."""
    rows = []
    for name, graph in graphs.items():
        sizes = "/".join(str(basis.size) for basis in graph.bases)
        without_edges = int(sum((m == NO_MODULE).sum() for m in graph.modules.labels))
        kept, q = "/".join(map(str, graph.kept)), f"{graph.modules.score:.3f}"
        rows.append([name, sizes, kept, graph.modules.n, q, count_misplaced(network, graph), without_edges])
    graph_table = markdown_table(["basis", "nodes", "edges needed", "modules", "Q", "misplaced", "no edge"], rows)
    wrong = {"as trained": losses.intact}
    wrong |= {
        f"without {name}{' (the shortcut)' if name == shortcut else ''}": by_task
        for name, by_task in losses.without.items()
    }
    rows = [
        [name, *(f"{by_task[key]:.1%}" for key in ("concept", "misled", "shortcut"))] for name, by_task in wrong.items()
    ]
    header = ["network", "wrong", "wrong where the shortcut misleads", "against the shortcut"]
    return f"{graph_table}\n\n{markdown_table(header, rows)}"


EXPERIMENT = Experiment(PlantedModules, result, last_row_of_history)
