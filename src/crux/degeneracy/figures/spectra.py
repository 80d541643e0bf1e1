"""Figure of the spectra of the activation Gram and the Jacobian Gram at several hook points."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from crux.plotting import GREY, new_figure, style_axes


def gram_spectra(
    activations: Mapping[str, Float[np.ndarray, "_d"]],
    jacobians: Mapping[str, Float[np.ndarray, "_d"]],
    *,
    thresholds: Sequence[float],
) -> Figure:
    """Plot the eigenvalues as shares of the largest over their rank: one curve per hook point, earlier ones darker.

    Dotted lines are the thresholds of the ranks.
    """
    figure = new_figure(width=9.0, height=4.2)
    left, right = figure.subplots(1, 2, sharey=True)
    floor = min(thresholds) / 100  # lower end of the y axis
    names = list(dict.fromkeys([*activations, *jacobians]))
    shades = ScalarMappable(Normalize(0, max(1, len(names) - 1)), "viridis")
    for axes, spectra in ((left, activations), (right, jacobians)):
        _plot_curves(axes, spectra, names, shades, floor)
        for threshold in thresholds:
            axes.axhline(threshold, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_yscale("log")
        axes.set_ylim(floor, 2)
    style_axes(left, x="direction", y="eigenvalue, share of the largest", title="activation Gram G")
    style_axes(right, x="direction", y="", title="Jacobian Gram K, to the output")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    return figure


def _plot_curves(
    axes: Axes,
    spectra: Mapping[str, Float[np.ndarray, "_d"]],
    names: Sequence[str],
    shades: ScalarMappable,
    floor: float,
) -> None:
    """Plot one curve per hook point. Zeros, which a logarithmic axis cannot show, are drawn below its lower end, `floor`."""
    for name, values in spectra.items():
        shares = np.maximum(values / max(values.max(initial=0.0), np.finfo(float).tiny), floor / 10)
        colour = shades.to_rgba(np.array([names.index(name)]))[0]
        axes.plot(np.arange(1, len(values) + 1), shares, color=colour, linewidth=1.3, label=name)
