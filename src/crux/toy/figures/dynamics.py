"""Draw learning as jumps: each feature's dimensionality during training, above the loss."""

import numpy as np
from jaxtyping import Float, Int
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from crux.plotting import PALETTE, new_figure, style_axes
from crux.toy.figures.fractions import mark_fractions


def plot_learning_dynamics(
    *,
    steps: Int[np.ndarray, "points"],
    dimensionality: Float[np.ndarray, "points n"],
    loss_steps: Int[np.ndarray, "losses"],
    loss: Float[np.ndarray, "losses"],
) -> Figure:
    """Draw D_i of every feature against the optimiser step, with the named fractions; below, at the same steps, the loss.

    Jumps between fractions coincide with drops of the loss, whose axis is logarithmic.
    """
    figure = new_figure(width=8.0, height=5.8)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    mark_fractions(above)
    n = dimensionality.shape[1]
    shades = ScalarMappable(Normalize(0, max(n - 1, 1)), "viridis")
    for values, color in zip(dimensionality.T, shades.to_rgba(np.arange(n)), strict=True):
        above.plot(steps, values, color=color, linewidth=1.1 if n <= 20 else 0.7, alpha=0.85)
    above.set_ylim(-0.03, 1.08)
    style_axes(above, x="", y="feature dimensionality $D_i$")
    above.grid(visible=False, axis="y")
    below.plot(loss_steps, np.where(loss > 0, loss, np.nan), color=PALETTE[1], linewidth=1.4)
    below.set_yscale("log")
    if loss.max() < 10 * loss[loss > 0].min(initial=np.inf):  # at most one power of ten in range: label linear ticks
        below.yaxis.set_major_locator(MaxNLocator(4))
        below.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        below.yaxis.set_minor_locator(NullLocator())
    below.yaxis.set_minor_formatter(NullFormatter())
    style_axes(below, x="optimiser step", y="loss")
    bar = figure.colorbar(shades, ax=[above, below], label="feature i", aspect=40)
    bar.locator = MaxNLocator(6, integer=True)
    return figure
