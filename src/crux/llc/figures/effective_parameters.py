"""How many parameters a network has at a cutoff of its behavioural loss."""

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
    """N_eff over ε: sampled with three standard errors; as lines what the Gauss–Newton spectrum says; dotted its rank.

    Args:
        sampled: of each name ε, N_eff and its standard error; quadratic: of each name ε and N_eff.
        n: parameters of the network.
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
