"""Draw how much SAEs absorb, over the weight of the sparsity penalty."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from crux.plotting import BLUE, GREY, new_figure, style_axes


def plot_absorption(
    sparsities: Sequence[float], lines: Mapping[str, Sequence[tuple[float, float]]], *, quantity: str
) -> Figure:
    """Draw one line per kind of features, with bars of one standard deviation over seeds.

    Args:
        sparsities: weights of the penalty; lines: mean and standard deviation at each of them, by the kind of features.
        quantity: what is drawn.
    """
    figure = new_figure(width=5.0, height=3.2)
    axes = figure.subplots()
    for (name, points), color in zip(lines.items(), (BLUE, GREY), strict=True):
        means, deviations = zip(*points, strict=True)
        axes.errorbar(sparsities, means, yerr=deviations, color=color, marker="o", markersize=4, capsize=3, label=name)
    axes.set_xticks(list(sparsities))
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.legend(frameon=False, fontsize=8)
    style_axes(axes, x="sparsity λ", y=quantity)
    return figure
