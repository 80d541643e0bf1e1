"""What a comparison of bases leaves: numbers, arrays, figures, and tables for people."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from crux.config.markdown import markdown_table
from crux.degeneracy.basis_options import CompareOptions
from crux.degeneracy.comparison import AblationCurve, BasisComparison, basis_kind, count_edges_for_share
from crux.degeneracy.figures.bases import ablation_curves, spectra
from crux.runs.result import Check

INTERACTION = ("local", "next", "global")
MOST = 0.99
"""Share of all edges' sum whose number of edges is counted."""


def layers(options: CompareOptions) -> list[str]:
    """Names of the places between the hook points."""
    return [f"{a} → {b}" for a, b in zip(options.hooks, options.hooks[1:], strict=False)]


def metrics(found: BasisComparison, options: CompareOptions) -> dict[str, float]:
    """Loss of the network as it is; directions and edges needed, where enough of them are enough; sizes; concentration of the edges."""
    numbers: dict[str, float] = {"clean_loss": found.clean}
    for name, along in found.bases.items():
        for k, hook in enumerate(options.hooks[:-1]):
            numbers[f"size/{name}/{hook}"] = along[k].size
            numbers |= _known(f"nodes_needed/{name}/{hook}", found.nodes[name][k].needed)
            numbers[f"edges_for_99/{name}/{hook}"] = count_edges_for_share(found.edges[name][k].strength, share=MOST)
            if name in found.edge_curves:
                numbers |= _known(f"edges_needed/{name}/{hook}", found.edge_curves[name][k].needed)
        if name in found.edge_curves:
            numbers |= _known(f"edges_needed/{name}/all", found.total_edges_needed(name))
    return numbers


def _known(name: str, value: int | None) -> dict[str, float]:
    return {} if value is None else {name: float(value)}


def arrays(found: BasisComparison, options: CompareOptions) -> dict[str, Tensor]:
    """Bases, edges and curves, by `<what>/<basis>/<hook point>`; `mean/<hook point>`."""
    kept: dict[str, Tensor] = {}
    for name, along in found.bases.items():
        for basis in along:
            at = f"{basis.name}/{basis.hook}"  # the last hook point's basis comes once, by its own name
            kept |= {f"strength/{at}": basis.strength, f"C/{at}": basis.C, f"C_pinv/{at}": basis.C_pinv}
            kept[f"mean/{basis.hook}"] = basis.mean
        for each in found.edges[name]:
            kept |= {f"edges/{name}/{each.source}": each.strength, f"constant/{name}/{each.source}": each.constant}
        for what, curves in (("nodes", found.nodes[name]), ("edge_losses", found.edge_curves.get(name, []))):
            for hook, curve in zip(options.hooks, curves, strict=False):
                rows = torch.tensor(list(curve.losses.items()), dtype=torch.float64)
                kept[f"{what}/{name}/{hook}"] = rows
    return {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in kept.items()}


def figures(found: BasisComparison, options: CompareOptions, *, loss: str) -> dict[str, Figure]:
    """Spectra, and the loss over the directions and edges that are kept."""

    def along(curves: dict[str, list[AblationCurve]], places: Sequence[str]) -> dict[str, dict[str, dict[int, float]]]:
        return {place: {name: of[k].losses for name, of in curves.items()} for k, place in enumerate(places)}

    drawn = {
        "spectra": spectra(
            {
                hook: {name: along[k].strength.tolist() for name, along in found.bases.items()}
                for k, hook in enumerate(options.hooks[:-1])
            }
        ),
        "nodes": ablation_curves(
            along(found.nodes, options.hooks[:-1]),
            clean=found.clean,
            within=options.within,
            kept="directions kept",
            loss=loss,
        ),
    }
    if found.edge_curves:
        drawn["edges"] = ablation_curves(
            along(found.edge_curves, layers(options)),
            clean=found.clean,
            within=options.within,
            kept="edges kept",
            loss=loss,
        )
    return drawn


def report(found: BasisComparison, options: CompareOptions, *, loss: str) -> str:
    """Tables of what is needed; how well the interaction basis's directions are told apart, and what it leaves out."""
    names = list(found.bases)
    ours = [name for name in names if basis_kind(name) in INTERACTION]
    parts = [
        f"{loss}: {found.clean:.5g} as it is; allowed {options.within:g} more.",
        markdown_table(
            ["directions needed at", *names],
            [[hook, *(_needed(found.nodes[name][k]) for name in names)] for k, hook in enumerate(options.hooks[:-1])],
        ),
    ]
    if cut := list(found.edge_curves):
        rows = [
            [layer, *(_needed(found.edge_curves[name][k]) for name in cut)] for k, layer in enumerate(layers(options))
        ]
        rows.append(["all", *(_number(found.total_edges_needed(name)) for name in cut)])
        parts.append(markdown_table(["edges needed", *cut], rows))
    rows = [
        [layer, *(_most(found.edges[name][k].strength) for name in names)] for k, layer in enumerate(layers(options))
    ]
    parts.append(markdown_table([f"edges that make up {MOST:.0%} of Ê", *names], rows))
    if ours:
        header = [
            "interaction basis",
            "directions",
            "variance left out",
            "Λ left out",
            "Λ within 1 % of the one before",
        ]
        rows = [
            [f"{name}, {basis.hook}", f"{basis.size} of {len(basis.mean)}", f"{basis.dropped:.1e}",
             f"{basis.unused:.1e}", int((basis.gaps < 0.01).sum())]
            for name in ours
            for basis in found.bases[name][:-1]
        ]  # fmt: skip
        parts.append(markdown_table(header, rows))
    return "\n\n".join(parts)


def _most(strength: Tensor) -> str:
    return f"{count_edges_for_share(strength, share=MOST)} of {strength.numel()}"


def _needed(curve: AblationCurve) -> str:
    return f"> {curve.size}" if curve.needed is None else str(curve.needed)


def _number(value: int | None) -> str:
    return "–" if value is None else str(value)


def orthogonality(found: BasisComparison, covariances: dict[str, Tensor]) -> list[Check]:
    """E[f̂ᵀ f̂] = Λ in every interaction basis, on the samples it was found on, relative to the largest Λ."""
    checks = []
    for name, along in found.bases.items():
        if basis_kind(name) in INTERACTION:
            worst = max(
                float(
                    (basis.C.T @ covariances[basis.hook] @ basis.C - basis.strength.diag()).abs().max()
                    / basis.strength[0]
                )
                for basis in along[:-1]
            )
            checks.append(Check(f"{name}: E f̂ᵀf̂ − Λ, of the largest Λ", worst, 0, 1e-8))
    return checks
