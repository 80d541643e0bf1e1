"""Figures of estimated learning coefficients, compared with their known values."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from crux.plotting import BLUE, GREY, MARKERS, PALETTE, VERMILION, new_figure, style_axes


def llc_errors(
    names: Sequence[str], differences: Sequence[float], errors: Sequence[float], *, passed: Sequence[bool]
) -> Figure:
    """Draw (estimate − prediction) / λ of every case with three standard errors; cases that did not pass are marked."""
    figure = new_figure(width=7.5, height=1.2 + 0.17 * len(names))
    axes = figure.subplots()
    for row, (value, error, agrees) in enumerate(zip(differences, errors, passed, strict=True)):
        axes.errorbar(
            value,
            row,
            xerr=3 * error,
            color=BLUE if agrees else VERMILION,
            marker="o" if agrees else "X",
            markersize=4,
            capsize=2,
        )
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_ylim(len(names) - 0.5, -0.5)
    style_axes(axes, x="(estimate − prediction) / λ, bars: 3 standard errors", y="")
    return figure


def llc_trend(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float], Sequence[float], float]],
) -> Figure:
    """Draw estimates over nβ next to their predictions, with λ as dotted lines.

    Args:
        curves: values of nβ, estimates, standard errors and predictions, and λ, by name.
    """
    figure = new_figure(width=7.5, height=4.2)
    axes = figure.subplots()
    for i, (name, (nbeta, mean, error, predicted, llc)) in enumerate(curves.items()):
        colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        axes.plot(nbeta, predicted, color=colour, linewidth=1.2)
        axes.errorbar(
            nbeta,
            mean,
            yerr=[3 * e for e in error],
            color=colour,
            marker=marker,
            linestyle="none",
            capsize=2,
            label=name,
        )
        axes.axhline(llc, color=colour, linestyle=":", linewidth=0.8)
    axes.set_xscale("log")
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    style_axes(axes, x="nβ", y="λ̂ (line: exact, dotted: λ)")
    return figure
