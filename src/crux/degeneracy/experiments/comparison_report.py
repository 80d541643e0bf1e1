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

INTERACTION_KINDS = ("local", "next", "global")
"""Kinds of bases that are interaction bases."""

EDGE_SHARE = 0.99
"""The number of strongest edges that make up this share of the sum of all edges is reported."""


def name_sections(options: CompareOptions) -> list[str]:
    """Return the names of the network's sections between consecutive hook points, such as `input → post0`."""
    return [f"{a} → {b}" for a, b in zip(options.hooks, options.hooks[1:], strict=False)]


def collect_metrics(comparison: BasisComparison, options: CompareOptions) -> dict[str, float]:
    """Return the clean loss, and per basis its size, the directions and edges needed (if known), and the edges that make up 99 %."""
    numbers: dict[str, float] = {"clean_loss": comparison.clean}
    for name, per_hook in comparison.bases.items():
        for k, hook in enumerate(options.hooks[:-1]):
            numbers[f"size/{name}/{hook}"] = per_hook[k].size
            numbers |= _omit_none(f"nodes_needed/{name}/{hook}", comparison.nodes[name][k].needed)
            numbers[f"edges_for_99/{name}/{hook}"] = count_edges_for_share(
                comparison.edges[name][k].strength, share=EDGE_SHARE
            )
            if name in comparison.edge_curves:
                numbers |= _omit_none(f"edges_needed/{name}/{hook}", comparison.edge_curves[name][k].needed)
        if name in comparison.edge_curves:
            numbers |= _omit_none(f"edges_needed/{name}/all", comparison.total_edges_needed(name))
    return numbers


def _omit_none(name: str, value: int | None) -> dict[str, float]:
    return {} if value is None else {name: float(value)}


def collect_arrays(comparison: BasisComparison, options: CompareOptions) -> dict[str, Tensor]:
    """Return bases, edges and ablation curves as arrays named `<quantity>/<basis>/<hook point>`, and means as `mean/<hook point>`."""
    arrays: dict[str, Tensor] = {}
    for name, per_hook in comparison.bases.items():
        for basis in per_hook:
            key = f"{basis.name}/{basis.hook}"  # the shared basis at the last hook point is stored once
            arrays |= {f"strength/{key}": basis.strength, f"C/{key}": basis.C, f"C_pinv/{key}": basis.C_pinv}
            arrays[f"mean/{basis.hook}"] = basis.mean
        for edges in comparison.edges[name]:
            arrays[f"edges/{name}/{edges.source}"] = edges.strength
            arrays[f"constant/{name}/{edges.source}"] = edges.constant
        for quantity, curves in (
            ("nodes", comparison.nodes[name]),
            ("edge_losses", comparison.edge_curves.get(name, [])),
        ):
            for hook, curve in zip(options.hooks, curves, strict=False):  # there is no curve at the last hook point
                rows = torch.tensor(list(curve.losses.items()), dtype=torch.float64)  # (number kept, loss)
                arrays[f"{quantity}/{name}/{hook}"] = rows
    return {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in arrays.items()}


def plot_figures(comparison: BasisComparison, options: CompareOptions, *, loss: str) -> dict[str, Figure]:
    """Plot the spectra of the bases, and the loss over the number of directions and of edges kept."""

    def arrange_by_place(
        curves: dict[str, list[AblationCurve]], places: Sequence[str]
    ) -> dict[str, dict[str, dict[int, float]]]:
        """Return place → basis → the losses, where a place is a hook point or a section between two of them."""
        return {
            place: {name: by_place[k].losses for name, by_place in curves.items()} for k, place in enumerate(places)
        }

    figures = {
        "spectra": basis_spectra(
            {
                hook: {name: per_hook[k].strength.tolist() for name, per_hook in comparison.bases.items()}
                for k, hook in enumerate(options.hooks[:-1])
            }
        ),
        "nodes": ablation_curves(
            arrange_by_place(comparison.nodes, options.hooks[:-1]),
            clean=comparison.clean,
            within=options.within,
            kept="directions kept",
            loss=loss,
        ),
    }
    if comparison.edge_curves:
        figures["edges"] = ablation_curves(
            arrange_by_place(comparison.edge_curves, name_sections(options)),
            clean=comparison.clean,
            within=options.within,
            kept="edges kept",
            loss=loss,
        )
    return figures


def format_tables(comparison: BasisComparison, options: CompareOptions, *, loss: str) -> str:
    """Return tables of the directions and edges needed, and of the interaction bases' sizes, left-out parts and close strengths."""
    names = list(comparison.bases)
    interaction = [name for name in names if basis_kind(name) in INTERACTION_KINDS]
    parts = [
        f"{loss}: {comparison.clean:.5g} for the unmodified network; {options.within:g} more is allowed.",
        markdown_table(
            ["directions needed at", *names],
            [
                [hook, *(_format_needed(comparison.nodes[name][k]) for name in names)]
                for k, hook in enumerate(options.hooks[:-1])
            ],
        ),
    ]
    if ablated := list(comparison.edge_curves):
        rows = [
            [layer, *(_format_needed(comparison.edge_curves[name][k]) for name in ablated)]
            for k, layer in enumerate(name_sections(options))
        ]
        rows.append(["all", *(_format_number(comparison.total_edges_needed(name)) for name in ablated)])
        parts.append(markdown_table(["edges needed", *ablated], rows))
    rows = [
        [layer, *(_format_edges_for_share(comparison.edges[name][k].strength) for name in names)]
        for k, layer in enumerate(name_sections(options))
    ]
    parts.append(markdown_table([f"edges that make up {EDGE_SHARE:.0%} of Ê", *names], rows))
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
            for basis in comparison.bases[name][:-1]
        ]  # fmt: skip
        parts.append(markdown_table(header, rows))
    return "\n\n".join(parts)


def _format_edges_for_share(strength: Tensor) -> str:
    return f"{count_edges_for_share(strength, share=EDGE_SHARE)} of {strength.numel()}"


def _format_needed(curve: AblationCurve) -> str:
    return f"> {curve.size}" if curve.needed is None else str(curve.needed)


def _format_number(value: int | None) -> str:
    return "–" if value is None else str(value)


def check_orthogonality(comparison: BasisComparison, covariances: dict[str, Tensor]) -> list[Check]:
    """Check that E[f̂ᵀ f̂] = Λ in every interaction basis, on the samples it was found on, relative to the largest Λ."""
    checks = []
    for name, per_hook in comparison.bases.items():
        if basis_kind(name) in INTERACTION_KINDS:
            worst = max(
                float(
                    (basis.C.T @ covariances[basis.hook] @ basis.C - basis.strength.diag()).abs().max()
                    / basis.strength[0]
                )
                for basis in per_hook[:-1]
            )
            checks.append(Check(f"{name}: E f̂ᵀf̂ − Λ, of the largest Λ", worst, 0, 1e-8))
    return checks
