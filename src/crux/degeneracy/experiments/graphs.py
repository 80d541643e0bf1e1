"""The interaction graph of each basis whose edges were ablated, restricted to the needed edges, and its modules by Leiden."""

from typing import NamedTuple

from matplotlib.figure import Figure

from crux.config.markdown import markdown_table
from crux.degeneracy.basis_options import ComparisonExperiment
from crux.degeneracy.comparison import BasisComparison
from crux.degeneracy.figures.interaction_graph import interaction_graph
from crux.degeneracy.modularity import Modules, cutoff_from_ablation, find_modules


class ModuleGraphs(NamedTuple):
    """Modules and figures of the interaction graphs."""

    modules: dict[str, Modules]
    """Modules, keyed by the name of the basis."""
    figures: dict[str, Figure]
    """Figures, keyed by the name of the figure."""

    @property
    def metrics(self) -> dict[str, float]:
        """Modularity and number of modules of each basis."""
        metrics: dict[str, float] = {}
        for name, modules in self.modules.items():
            metrics |= {f"modularity/{name}": modules.score, f"modules/{name}": float(modules.n)}
        return metrics

    @property
    def report(self) -> str:
        """The modules as a table."""
        rows = []
        for name, modules in self.modules.items():
            sizes = "; ".join("/".join(map(str, row)) for row in modules.clusters[:4].tolist())
            rows.append([name, modules.n, f"{modules.score:.3f}", sizes])
        header = ["interaction graph of the edges needed", "modules", "Q", "nodes by layer, the largest modules"]
        return markdown_table(header, rows)


def find_graphs(comparison: BasisComparison, options: ComparisonExperiment, *, seed: int) -> ModuleGraphs:
    """Return the graphs of the bases for which the number of edges needed is known in every layer.

    The cutoff of a layer is the weakest edge needed, as found by the edge ablation.
    """
    modules, figures = {}, {}
    for name, curves in comparison.edge_curves.items():
        strengths = [edges.strength for edges in comparison.edges[name]]
        needed = [curve.needed for curve in curves]
        # `if n_needed` skips layers for which the number is unknown, or 0, so that there is no weakest edge
        cutoffs = [
            cutoff_from_ablation(strength, n_needed)
            for strength, n_needed in zip(strengths, needed, strict=True)
            if n_needed
        ]
        if len(cutoffs) < len(strengths):
            continue
        modules[name] = find_modules(strengths, cutoffs=cutoffs, constant=None, options=options.modularity, seed=seed)
        figures[f"graph_{name}"] = interaction_graph(
            [w.numpy() for w in modules[name].weights],
            [labels.numpy() for labels in modules[name].labels],
            layers=[hook.removeprefix("blocks.") for hook in options.compare.hooks],
            title=f"{name}, Q = {modules[name].score:.2f}",
        )
    return ModuleGraphs(modules, figures)
