"""Figures of the spectra and ablation curves of several bases along a network."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crux.plotting import GREY, MARKERS, PALETTE, new_figure, style_axes

COLUMNS = 3
KINDS = ("neuron", "random", "pca", "local", "next", "global", "sae")
"""Kinds of bases. Each kind has the same colour and line in every figure; `next-3` has those of `next`."""
COLOURS = (*PALETTE, GREY)
LINES = ("-", "-", "-", "-", "--", ":", "-.")
"""Line styles, which differ for the interaction bases because their curves often coincide."""


def basis_spectra(strengths: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Plot the strengths of each basis over their rank, as shares of the largest; one panel per hook point.

    Args:
        strengths: hook point → basis → strengths in descending order.
    """
    figure, panels = _panels(list(strengths))
    for axes, (hook, by_basis) in zip(panels, strengths.items(), strict=True):
        for name, values in by_basis.items():
            i = KINDS.index(name.partition("-")[0])
            largest = max(values)
            axes.plot(
                range(1, len(values) + 1),
                [v / largest for v in values],
                label=name,
                color=COLOURS[i],
                linestyle=LINES[i],
                linewidth=1.4,
            )
        axes.set_yscale("log")
        axes.set_xscale("log")
        floor = max(1e-12, min(min(v for v in values if v > 0) / max(values) for values in by_basis.values()))
        axes.set_ylim(floor / 2, 2)
        style_axes(axes, x="rank", y="strength / largest" if axes in panels[::COLUMNS] else "", title=hook)
    _legend(figure, panels)
    return figure


def ablation_curves(
    losses: Mapping[str, Mapping[str, Mapping[int, float]]], *, clean: float, within: float, kept: str, loss: str
) -> Figure:
    """Plot the loss of each basis over the number of directions or edges kept; one panel per place.

    The dashed line is the clean loss, the dotted line the largest allowed loss.

    Args:
        losses: place → basis → number kept → loss.
        clean: loss of the unmodified network.
        within: allowed rise of the loss.
        kept: label of the x axis.
        loss: label of the y axis.
    """
    figure, panels = _panels(list(losses))
    for axes, (place, by_basis) in zip(panels, losses.items(), strict=True):
        for name, curve in by_basis.items():
            i = KINDS.index(name.partition("-")[0])
            axes.plot(
                list(curve),
                list(curve.values()),
                label=name,
                color=COLOURS[i],
                marker=MARKERS[i % len(MARKERS)],
                markersize=3.5,
                linestyle=LINES[i],
                linewidth=1.2,
            )
        axes.axhline(clean, color=GREY, linestyle="--", linewidth=0.8)
        axes.axhline(clean + within, color=GREY, linestyle=":", linewidth=0.8)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(left=0)
        style_axes(axes, x=kept, y=loss if axes in panels[::COLUMNS] else "", title=place.replace(" → ", " →\n"))
    _legend(figure, panels)
    return figure


def _panels(names: Sequence[str]) -> tuple[Figure, list[Axes]]:
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(width=1.4 + 3.3 * columns, height=0.3 + 3.0 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for empty in panels[len(names) :]:
        empty.set_visible(False)
    return figure, panels[: len(names)]


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    handles: dict[str, object] = {}
    for axes in panels:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(list(handles.values()), list(handles), loc="outside right center", frameon=False, fontsize=8)  # pyright: ignore[reportArgumentType]
