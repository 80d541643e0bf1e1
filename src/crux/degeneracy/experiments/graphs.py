"""The interaction graph of each basis whose edges were ablated: the edges that are needed, in modules by Leiden."""

from typing import NamedTuple

from matplotlib.figure import Figure

from crux.config.markdown import markdown_table
from crux.degeneracy.basis_options import ComparisonExperiment
from crux.degeneracy.comparison import BasisComparison
from crux.degeneracy.figures.interaction_graph import interaction_graph
from crux.degeneracy.modularity import Modules, find_modules, smallest_kept


class Graphs(NamedTuple):
    """By the name of the basis."""

    modules: dict[str, Modules]
    figures: dict[str, Figure]

    @property
    def metrics(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, of in self.modules.items():
            found |= {f"modularity/{name}": of.score, f"modules/{name}": float(of.n)}
        return found

    @property
    def report(self) -> str:
        """A table."""
        rows = []
        for name, of in self.modules.items():
            sizes = "; ".join("/".join(map(str, row)) for row in of.clusters[:4].tolist())
            rows.append([name, of.n, f"{of.score:.3f}", sizes])
        header = ["interaction graph of the edges needed", "modules", "Q", "nodes by layer, the largest modules"]
        return markdown_table(header, rows)


def graphs(found: BasisComparison, options: ComparisonExperiment, *, seed: int) -> Graphs:
    """Return the graphs of the bases in which some edges are enough between every two layers.

    An edge counts if it is at least as strong as the weakest one that is needed.
    """
    modules, figures = {}, {}
    for name, curves in found.edge_curves.items():
        strengths = [each.strength for each in found.edges[name]]
        needed = [curve.needed for curve in curves]
        cutoffs = [smallest_kept(s, n) for s, n in zip(strengths, needed, strict=True) if n]
        if len(cutoffs) < len(strengths):
            continue
        modules[name] = find_modules(strengths, cutoffs=cutoffs, constant=None, options=options.modularity, seed=seed)
        figures[f"graph_{name}"] = interaction_graph(
            [w.numpy() for w in modules[name].weights],
            [of.numpy() for of in modules[name].labels],
            layers=[hook.removeprefix("blocks.") for hook in options.compare.hooks],
            title=f"{name}, Q = {modules[name].score:.2f}",
        )
    return Graphs(modules, figures)
