"""A network of two modules, one of them a shortcut: found by Leiden in the interaction basis, and each taken out."""

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
    Samples,
    Shortcut,
    train,
    training_samples,
    unrelated,
)
from crux.degeneracy.figures.interaction_graph import interaction_graph
from crux.degeneracy.grams import moments
from crux.degeneracy.interaction_basis import interaction_bases
from crux.degeneracy.modularity import NO_MODULE, Modules, find_modules, smallest_kept
from crux.degeneracy.networks.chain import Chain
from crux.degeneracy.packing import pack, unpack
from crux.degeneracy.removal import RemovalLosses, losses_without, select_directions
from crux.runs.experiment import Experiment, keep_all_rows
from crux.runs.intermediate import compute_once
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result

FOUND_ON, JUDGED_ON = 40, 60
"""Concept parts and shortcut parts of the samples; every one of the first with every one of the second."""


class Graph(NamedTuple):
    """A network's interaction graph in one kind of basis."""

    bases: list[Basis]
    strengths: list[Float[Tensor, "_to _from"]]
    kept: list[int]
    """Edges that are needed between each layer and the next."""
    modules: Modules


def result(options: PlantedModules, run: ActiveRun) -> Result:
    """Find the planted modules without knowledge of them; without the shortcut's the network is right where it misled."""
    generator = torch.Generator().manual_seed(run.seed)
    network = train(generator, run)
    chain = network.chain
    found_on = unrelated(FOUND_ON, network.rotation, generator)
    judged_on = unrelated(JUDGED_ON, network.rotation, generator)
    as_trained = training_samples(len(found_on.x), generator)[0] @ network.rotation
    studied = {
        "interaction basis": ("local", found_on.x),
        "principal components": ("pca", found_on.x),
        "neurons": ("neuron", found_on.x),
        "interaction basis, training data": ("local", as_trained),
    }
    graphs: dict[str, Graph] = {}
    for done, (name, (kind, x)) in enumerate(track(studied.items(), "interaction graphs"), 1):
        graphs[name] = graph(chain, x, kind, options, run=run, piece=f"graph_{done}")
    best = graphs["interaction basis"]
    losses = without_each(chain, best, judged_on)
    shortcut = min(losses.without, key=lambda name: losses.without[name]["misled"])
    (concept, *_) = sorted(set(losses.without) - {shortcut})
    checks = [
        Check("modules found", best.modules.n, 2, 2),
        Check("nodes in another module than the one they were planted in", misplaced(network, best), 0, 0),
        Check("strongest edge between planted modules, share of the strongest", across(network, best), 0, 1e-10),
        *removal_checks(losses, shortcut=shortcut, concept=concept),
    ]
    metrics = {"score": best.modules.score, "modules": float(best.modules.n)}
    for name, of in losses.without.items():
        role = "shortcut" if name == shortcut else "concept" if name == concept else name
        metrics |= {f"without_{role}/{task}": value for task, value in of.items()}
    metrics |= {f"intact/{task}": value for task, value in losses.intact.items()}
    figures = {
        name.replace(", ", "_").replace(" ", "_"): interaction_graph(
            [w.numpy() for w in of.modules.weights], [m.numpy() for m in of.modules.labels], layers=HOOKS,
            title=f"{name}, Q = {of.modules.score:.2f}",
        )
        for name, of in graphs.items()
    }  # fmt: skip
    arrays = {f"edges/{i}": strength for i, strength in enumerate(best.strengths)}
    arrays |= {f"module/{hook}": of for hook, of in zip(HOOKS, best.modules.labels, strict=True)}
    return Result(metrics, checks, figures, arrays, report(network, graphs, losses, shortcut))


def bases_of(chain: Chain, x: Float[Tensor, "n d"], kind: str, *, threshold: float, seed: int) -> list[Basis]:
    """Return the bases along the layers. Neurons that never vary are left out."""
    if kind == "local":
        return interaction_bases(
            chain, [x], hooks=HOOKS, ahead=1, last=None, probes=None, threshold=threshold, seed=seed
        )
    at = moments(chain, [x], hooks=HOOKS)
    if kind == "pca":
        return [pca_basis(hook, at[hook], threshold=threshold) for hook in HOOKS]
    return [
        varying_neuron_basis(hook, at[hook].mean, at[hook].covariance.diagonal(), threshold=threshold) for hook in HOOKS
    ]


def varying_neuron_basis(
    hook: str, mean: Float[Tensor, "d"], variance: Float[Tensor, "d"], *, threshold: float
) -> Basis:
    """Return the coordinates that vary, in the network's order."""
    varies = variance > threshold * variance.max()
    C = torch.eye(len(mean), dtype=torch.float64)[:, varies]
    return Basis(hook, "neuron", mean, C, C.T, variance[varies], 0.0, 0.0)


def graph(
    chain: Chain, x: Float[Tensor, "n d"], kind: str, options: PlantedModules, *, run: ActiveRun, piece: str
) -> Graph:
    """Return the graph: bases, their edges, how many of these are needed, and the modules."""
    of = options.compare

    def compute() -> dict[str, Tensor]:
        bases = bases_of(chain, x, kind, threshold=of.threshold, seed=run.seed)
        found = interaction_edges(chain, [x], bases=bases, points=of.points, probes=None, mode=None, seed=run.seed)
        clean = chain(x)
        packed: dict[str, Tensor] = {}
        for basis in bases:
            packed |= pack(basis._asdict(), prefix=f"{basis.hook}/")
        for i, (pair, each) in enumerate(zip(itertools.pairwise(bases), found, strict=True)):
            ablation = EdgeAblation(
                chain, [x], bases=pair, strength=each.strength, end=LOGIT,
                loss=lambda x, y: (y - clean).square()[:, 0] / clean.var(),
            )  # fmt: skip
            needed = smallest_sufficient(ablation.loss, size=ablation.size, limit=of.within) or ablation.size
            packed |= {f"strength{i}": each.strength, f"needed{i}": torch.tensor(needed)}
        return packed

    found = compute_once(run.folder, piece, compute)
    device = torch.device("cpu")
    bases = [unpack(Basis, found, prefix=f"{hook}/", device=device, hook=hook, name=kind) for hook in HOOKS]
    strengths = [found[f"strength{i}"] for i in range(len(HOOKS) - 1)]
    kept = [int(found[f"needed{i}"]) for i in range(len(HOOKS) - 1)]
    cutoffs = [smallest_kept(s, n) for s, n in zip(strengths, kept, strict=True)]
    modules = find_modules(strengths, cutoffs=cutoffs, constant=None, options=options.modularity, seed=run.seed)
    return Graph(bases, strengths, kept, modules)


def planted(network: Shortcut, bases: Sequence[Basis]) -> list[Float[Tensor, "node"]]:
    """Of each direction the share that lies in the shortcut's subspace: 0 or 1 where the basis tells the modules apart."""
    shares = []
    for basis in bases:
        inside = (basis.C_pinv @ network.subspaces[basis.hook]).square().sum(2)  # [module, node]
        shares.append(inside[1] / inside.sum(0))
    return shares


def misplaced(network: Shortcut, of: Graph) -> int:
    """Nodes with edges that are not where they were planted, by the modules' better match; mixed directions count as misplaced."""
    truth = torch.cat(planted(network, of.bases))
    found = torch.cat(of.modules.labels)
    true = torch.where(truth < 1e-6, 0, torch.where(truth > 1 - 1e-6, 1, 2))
    matches = [((found == a) & (true == 0)).sum() + ((found == 1 - a) & (true == 1)).sum() for a in (0, 1)]
    return int((found != NO_MODULE).sum() - max(matches))


def across(network: Shortcut, of: Graph) -> float:
    """The strongest edge between directions of different planted modules, as a share of the strongest between their layers."""
    sides = [share > 0.5 for share in planted(network, of.bases)]
    return max(
        float((strength * (b[:, None] != a[None])).max() / strength.max())
        for strength, (a, b) in zip(of.strengths, itertools.pairwise(sides), strict=True)
    )


def without_each(chain: Chain, of: Graph, samples: Samples) -> RemovalLosses:
    """What the network does as it is and without each module, at every layer: shares of the samples."""
    conflict = samples.concept != samples.shortcut

    def wrong(y: Tensor, truth: Tensor) -> Tensor:
        return ((y[:, 0] > 0) != truth).double()

    tasks = {
        "concept": lambda y, true: wrong(y, true[0]),
        "misled": lambda y, true: wrong(y, true[0]) * true[2] / true[2].mean(),
        "shortcut": lambda y, true: wrong(y, true[1]),
    }
    removed = {
        f"module {m}": {
            basis.hook: select_directions(basis, where == m)
            for basis, where in zip(of.bases, of.modules.labels, strict=True)
            if bool((where == m).any())
        }
        for m in range(of.modules.n)
    }
    targets = (samples.concept, samples.shortcut, conflict.double())
    return losses_without(chain, [(samples.x, targets)], removed=removed, end=LOGIT, tasks=tasks)


def removal_checks(losses: RemovalLosses, *, shortcut: str, concept: str) -> list[Check]:
    """What the network loses and keeps."""
    cut, kept = losses.without[shortcut], losses.without[concept]
    return [
        Check("as trained: wrong where the shortcut misleads", losses.intact["misled"], 0.4, 1),
        Check("without the shortcut's module: wrong where the shortcut misleads", cut["misled"], 0, 0.15),
        Check("without the shortcut's module: wrong in all", cut["concept"], 0, 0.15),
        Check("without the shortcut's module: against the shortcut", cut["shortcut"], 0.45, 0.55),
        Check("without the concept's module: wrong in all", kept["concept"], 0.45, 0.55),
        Check("without the concept's module: against the shortcut", kept["shortcut"], 0, 0.15),
    ]


def report(network: Shortcut, graphs: dict[str, Graph], losses: RemovalLosses, shortcut: str) -> str:
    """Two tables: the graphs, and what each module does."""
    rows = []
    for name, of in graphs.items():
        sizes = "/".join(str(basis.size) for basis in of.bases)
        alone = int(sum((m == NO_MODULE).sum() for m in of.modules.labels))
        kept, q = "/".join(map(str, of.kept)), f"{of.modules.score:.3f}"
        rows.append([name, sizes, kept, of.modules.n, q, misplaced(network, of), alone])
    of_graphs = markdown_table(["basis", "nodes", "edges needed", "modules", "Q", "misplaced", "no edge"], rows)
    wrong = {"as trained": losses.intact}
    wrong |= {
        f"without {name}{' (the shortcut)' if name == shortcut else ''}": of for name, of in losses.without.items()
    }
    rows = [[name, *(f"{of[key]:.1%}" for key in ("concept", "misled", "shortcut"))] for name, of in wrong.items()]
    header = ["network", "wrong", "wrong where the shortcut misleads", "against the shortcut"]
    return f"{of_graphs}\n\n{markdown_table(header, rows)}"


EXPERIMENT = Experiment(PlantedModules, result, keep_all_rows)
