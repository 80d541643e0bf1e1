"""Draw the features that a toy model represents and those that share a direction: "basic results" of "Toy Models of Superposition"."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from crux.plotting import new_figure, style_axes

PRODUCT_COLOURS, OVERLAP_COLOURS = "RdBu_r", "viridis"


def plot_superposition(
    *,
    weights: Float[np.ndarray, "panels m n"],
    biases: Float[np.ndarray, "panels n"],
    norms: Float[np.ndarray, "panels n"],
    superposition: Float[np.ndarray, "panels n"],
    titles: Sequence[str],
) -> Figure:
    """Draw one column per model: above, WᵀW with the bias to its right; below, one bar ‖W_i‖ per feature in the same order.

    Bars are coloured by Σ_{j≠i} (Ŵ_i·W_j)²: dark if no other feature shares the direction, brightest from 1 on.
    """
    n = weights.shape[-1]
    products = weights.swapaxes(1, 2) @ weights
    figure = new_figure(width=1.6 + 2.2 * len(weights), height=5.4)
    grid = figure.subplots(2, len(weights), squeeze=False)
    ends, shades = Normalize(-1, 1), Normalize(0, 1)
    longest = 1.08 * max(1.0, float(norms.max()))
    for k, title in enumerate(titles):
        above, below = grid[:, k]
        _draw_matrix(above, products[k], biases[k], ends)
        above.set_title(title, loc="left", fontsize=10)
        below.barh(
            np.arange(n), norms[k], height=0.85, color=ScalarMappable(shades, OVERLAP_COLOURS).to_rgba(superposition[k])
        )
        below.set(xlim=(0, longest), ylim=(n - 0.5, -0.5), box_aspect=1)
        style_axes(below, x=r"norm $\|W_i\|$", y="feature i" if k == 0 else "")
        below.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        below.grid(visible=False, axis="y")
        if k == 0:
            above.set_ylabel("feature i")
        else:
            above.tick_params(labelleft=False)
            below.tick_params(labelleft=False)
    figure.colorbar(
        ScalarMappable(ends, PRODUCT_COLOURS), ax=grid[0].tolist(), label=r"$W^T W$, and bias $b$", extend="both"
    )
    shared = r"superposition $\sum_{j \neq i} (\hat W_i \cdot W_j)^2$"
    figure.colorbar(ScalarMappable(shades, OVERLAP_COLOURS), ax=grid[1].tolist(), label=shared, extend="max")
    return figure


def _draw_matrix(axes: Axes, products: np.ndarray, bias: np.ndarray, ends: Normalize) -> None:
    """Draw WᵀW and, two cells to the right, b, with the same colour scale."""
    n = len(bias)
    wide = max(1.0, n / 12)
    gap = wide / 2
    axes.imshow(
        products, cmap=PRODUCT_COLOURS, norm=ends, extent=(-0.5, n - 0.5, n - 0.5, -0.5), interpolation="nearest"
    )
    axes.imshow(
        bias[:, None],
        cmap=PRODUCT_COLOURS,
        norm=ends,
        extent=(n - 0.5 + gap, n - 0.5 + gap + wide, n - 0.5, -0.5),
        aspect="equal",
    )
    axes.set(xlim=(-0.5, n - 0.5 + gap + wide), ylim=(n - 0.5, -0.5), xlabel="feature j", aspect="equal")
    ticks = [int(tick) for tick in MaxNLocator(5, integer=True).tick_values(0, n - 1) if 0 <= tick < n]
    axes.set_xticks([*ticks, n - 0.5 + gap + wide / 2], labels=[*map(str, ticks), "b"])
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.spines[:].set_visible(False)
