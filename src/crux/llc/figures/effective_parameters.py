"""Figure of the effective number of parameters over cutoffs of the behavioural loss."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from crux.plotting import GREY, MARKERS, PALETTE, new_figure, style_axes


def effective_parameters_figure(
    sampled: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]],
    quadratic: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    ranks: Mapping[str, float],
    n: int,
) -> Figure:
    """Draw N_eff over ε: sampled values with three standard errors, curves from the Gauss–Newton spectrum, and its rank as dotted lines.

    Args:
        sampled: ε, N_eff and its standard error, by name.
        quadratic: ε and N_eff from the spectrum, by name.
        ranks: rank of the Gauss–Newton matrix, by name.
        n: number of the network's parameters.
    """
    figure = new_figure(width=7.0, height=4.4)
    axes = figure.subplots()
    for i, name in enumerate(quadratic):
        colour = PALETTE[i % len(PALETTE)]
        axes.plot(*quadratic[name], color=colour, linewidth=1.4, label=f"{name}: Gauss–Newton")
        axes.axhline(ranks[name], color=colour, linestyle=":", linewidth=1, label=f"its rank, {ranks[name]:g}")
        epsilon, mean, error = sampled[name]
        axes.errorbar(
            epsilon, mean, yerr=[3 * e for e in error], color=colour, marker=MARKERS[i % len(MARKERS)], linestyle="none",
            capsize=3, label=f"{name}: sampled, bars 3 standard errors",
        )  # fmt: skip
    axes.axhline(n, color=GREY, linewidth=1, linestyle="--", label=f"all {n} parameters")
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7.5, frameon=False, loc="lower right")
    style_axes(
        axes, x="cutoff ε = 1/nβ of the behavioural loss (smaller to the right)", y="effective parameters 2 λ_B(ε)"
    )
    return figure
