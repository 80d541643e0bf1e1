"""The results of a comparison of bases: metrics, arrays, figures, tables and checks."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from crux.config.markdown import markdown_table
from crux.degeneracy.basis_options import CompareOptions
from crux.degeneracy.comparison import AblationCurve, BasisComparison, basis_kind, count_edges_for_share
from crux.degeneracy.figures.bases import ablation_curves, basis_spectra
from crux.runs.result import Check

INTERACTION = ("local", "next", "global")
MOST = 0.99
"""The number of strongest edges that make up this share of the sum of all edges is reported."""


def section_names(options: CompareOptions) -> list[str]:
    """Return the names of the layers: the sections between consecutive hook points."""
    return [f"{a} → {b}" for a, b in zip(options.hooks, options.hooks[1:], strict=False)]


def comparison_metrics(found: BasisComparison, options: CompareOptions) -> dict[str, float]:
    """Return the clean loss, and per basis its size, the directions and edges needed (if known), and the edges that make up 99 %."""
    numbers: dict[str, float] = {"clean_loss": found.clean}
    for name, along in found.bases.items():
        for k, hook in enumerate(options.hooks[:-1]):
            numbers[f"size/{name}/{hook}"] = along[k].size
            numbers |= _if_known(f"nodes_needed/{name}/{hook}", found.nodes[name][k].needed)
            numbers[f"edges_for_99/{name}/{hook}"] = count_edges_for_share(found.edges[name][k].strength, share=MOST)
            if name in found.edge_curves:
                numbers |= _if_known(f"edges_needed/{name}/{hook}", found.edge_curves[name][k].needed)
        if name in found.edge_curves:
            numbers |= _if_known(f"edges_needed/{name}/all", found.total_edges_needed(name))
    return numbers


def _if_known(name: str, value: int | None) -> dict[str, float]:
    return {} if value is None else {name: float(value)}


def comparison_arrays(found: BasisComparison, options: CompareOptions) -> dict[str, Tensor]:
    """Return bases, edges and curves as arrays named `<what>/<basis>/<hook point>`, and means as `mean/<hook point>`."""
    arrays: dict[str, Tensor] = {}
    for name, along in found.bases.items():
        for basis in along:
            key = f"{basis.name}/{basis.hook}"  # the shared basis at the last hook point is stored once
            arrays |= {f"strength/{key}": basis.strength, f"C/{key}": basis.C, f"C_pinv/{key}": basis.C_pinv}
            arrays[f"mean/{basis.hook}"] = basis.mean
        for edges in found.edges[name]:
            arrays[f"edges/{name}/{edges.source}"] = edges.strength
            arrays[f"constant/{name}/{edges.source}"] = edges.constant
        for what, curves in (("nodes", found.nodes[name]), ("edge_losses", found.edge_curves.get(name, []))):
            for hook, curve in zip(options.hooks, curves, strict=False):
                rows = torch.tensor(list(curve.losses.items()), dtype=torch.float64)
                arrays[f"{what}/{name}/{hook}"] = rows
    return {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in arrays.items()}


def comparison_figures(found: BasisComparison, options: CompareOptions, *, loss: str) -> dict[str, Figure]:
    """Draw the spectra, and the loss over the number of directions and edges kept."""

    def losses(curves: dict[str, list[AblationCurve]], places: Sequence[str]) -> dict[str, dict[str, dict[int, float]]]:
        """Return the losses of each basis at each place."""
        return {
            place: {name: by_place[k].losses for name, by_place in curves.items()} for k, place in enumerate(places)
        }

    figures = {
        "spectra": basis_spectra(
            {
                hook: {name: along[k].strength.tolist() for name, along in found.bases.items()}
                for k, hook in enumerate(options.hooks[:-1])
            }
        ),
        "nodes": ablation_curves(
            losses(found.nodes, options.hooks[:-1]),
            clean=found.clean,
            within=options.within,
            kept="directions kept",
            loss=loss,
        ),
    }
    if found.edge_curves:
        figures["edges"] = ablation_curves(
            losses(found.edge_curves, section_names(options)),
            clean=found.clean,
            within=options.within,
            kept="edges kept",
            loss=loss,
        )
    return figures


def comparison_tables(found: BasisComparison, options: CompareOptions, *, loss: str) -> str:
    """Return tables of the directions and edges needed, and of the interaction bases' sizes, left-out parts and close strengths."""
    names = list(found.bases)
    interaction = [name for name in names if basis_kind(name) in INTERACTION]
    parts = [
        f"{loss}: {found.clean:.5g} for the unmodified network; {options.within:g} more is allowed.",
        markdown_table(
            ["directions needed at", *names],
            [[hook, *(_needed(found.nodes[name][k]) for name in names)] for k, hook in enumerate(options.hooks[:-1])],
        ),
    ]
    if ablated := list(found.edge_curves):
        rows = [
            [layer, *(_needed(found.edge_curves[name][k]) for name in ablated)]
            for k, layer in enumerate(section_names(options))
        ]
        rows.append(["all", *(_number(found.total_edges_needed(name)) for name in ablated)])
        parts.append(markdown_table(["edges needed", *ablated], rows))
    rows = [
        [layer, *(_edges_for_share(found.edges[name][k].strength) for name in names)]
        for k, layer in enumerate(section_names(options))
    ]
    parts.append(markdown_table([f"edges that make up {MOST:.0%} of Ê", *names], rows))
    if interaction:
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
            for name in interaction
            for basis in found.bases[name][:-1]
        ]  # fmt: skip
        parts.append(markdown_table(header, rows))
    return "\n\n".join(parts)


def _edges_for_share(strength: Tensor) -> str:
    return f"{count_edges_for_share(strength, share=MOST)} of {strength.numel()}"


def _needed(curve: AblationCurve) -> str:
    return f"> {curve.size}" if curve.needed is None else str(curve.needed)


def _number(value: int | None) -> str:
    return "–" if value is None else str(value)


def check_orthogonality(found: BasisComparison, covariances: dict[str, Tensor]) -> list[Check]:
    """Check that E[f̂ᵀ f̂] = Λ in every interaction basis, on the samples it was found on, relative to the largest Λ."""
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
