"""Figures of the spectra and ablation curves of several bases along a network."""

from collections.abc import Mapping, Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crux.plotting import GREY, MARKERS, PALETTE, new_figure, style_axes

MAX_COLUMNS = 3
"""Largest number of panels in a row."""

KINDS = ("neuron", "random", "pca", "local", "next", "global", "sae")
"""Kinds of bases. Each kind has the same colour and line in every figure; `next-3` has those of `next`."""

COLOURS = (*PALETTE, GREY)
"""Colour of each kind."""

LINES = ("-", "-", "-", "-", "--", ":", "-.")
"""Line style of each kind; those of the interaction bases differ, because their curves often coincide."""


def basis_spectra(strengths: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Plot the strengths of each basis over their rank, as shares of the largest; one panel per hook point.

    Args:
        strengths: hook point → basis → strengths in descending order.
    """
    figure, panels = _create_panels(list(strengths))
    for axes, (hook, by_basis) in zip(panels, strengths.items(), strict=True):
        for name, values in by_basis.items():
            style = KINDS.index(name.partition("-")[0])
            largest = max(values)
            axes.plot(
                range(1, len(values) + 1),
                [v / largest for v in values],
                label=name,
                color=COLOURS[style],
                linestyle=LINES[style],
                linewidth=1.4,
            )
        axes.set_yscale("log")
        axes.set_xscale("log")
        floor = max(1e-12, min(min(v for v in values if v > 0) / max(values) for values in by_basis.values()))
        axes.set_ylim(floor / 2, 2)
        style_axes(axes, x="rank", y="strength / largest" if axes in panels[::MAX_COLUMNS] else "", title=hook)
    _add_legend(figure, panels)
    return figure


def ablation_curves(
    losses: Mapping[str, Mapping[str, Mapping[int, float]]], *, clean: float, within: float, kept: str, loss: str
) -> Figure:
    """Plot the loss of each basis over the number of directions or edges kept; one panel per place: a hook point, or a section between two.

    The dashed line is the clean loss, the dotted line the largest allowed loss.

    Args:
        losses: place → basis → number kept → loss.
        clean: loss of the unmodified network.
        within: allowed rise of the loss.
        kept: label of the x axis.
        loss: label of the y axis.
    """
    figure, panels = _create_panels(list(losses))
    for axes, (place, by_basis) in zip(panels, losses.items(), strict=True):
        for name, curve in by_basis.items():
            style = KINDS.index(name.partition("-")[0])
            axes.plot(
                list(curve),
                list(curve.values()),
                label=name,
                color=COLOURS[style],
                marker=MARKERS[style % len(MARKERS)],
                markersize=3.5,
                linestyle=LINES[style],
                linewidth=1.2,
            )
        axes.axhline(clean, color=GREY, linestyle="--", linewidth=0.8)
        axes.axhline(clean + within, color=GREY, linestyle=":", linewidth=0.8)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(left=0)
        style_axes(axes, x=kept, y=loss if axes in panels[::MAX_COLUMNS] else "", title=place.replace(" → ", " →\n"))
    _add_legend(figure, panels)
    return figure


def _create_panels(names: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, one per name."""
    columns = min(MAX_COLUMNS, len(names))
    rows = -(-len(names) // columns)  # rounded up
    figure = new_figure(width=1.4 + 3.3 * columns, height=0.3 + 3.0 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for empty in panels[len(names) :]:
        empty.set_visible(False)
    return figure, panels[: len(names)]


def _add_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Add one legend with every basis that occurs in some panel."""
    handle_of_basis: dict[str, Artist] = {}
    for axes in panels:
        handles, names = axes.get_legend_handles_labels()
        handle_of_basis |= dict(zip(names, handles, strict=True))
    figure.legend(
        list(handle_of_basis.values()), list(handle_of_basis), loc="outside right center", frameon=False, fontsize=8
    )
