"""Draw how well an SAE's dictionary recovers each true feature of a toy model."""

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from crux.plotting import BLUE, GREY, new_figure, style_axes


def plot_recovery(
    cosine: Float[np.ndarray, "n_features"], *, living: Bool[np.ndarray, "n_features"], threshold: float
) -> Figure:
    """Draw one bar per feature: its cosine with the nearest latent. Features that the toy model does not represent are grey."""
    figure = new_figure(width=max(4.0, min(10.0, 2 + 0.15 * len(cosine))), height=3.2)
    axes = figure.subplots()
    axes.bar(np.arange(len(cosine)), cosine, color=[BLUE if alive else "#cccccc" for alive in living], width=0.8)
    axes.axhline(threshold, color=GREY, linewidth=1, linestyle="--")
    axes.annotate(f"recovered above {threshold:g}", (1, threshold), xycoords=("axes fraction", "data"), ha="right",
                  va="bottom", fontsize=8, color=GREY)  # fmt: skip
    axes.set_ylim(min(0.0, float(cosine.min())), 1.08)
    note = "" if living.all() else " (grey: not represented by the toy model)"
    style_axes(axes, x=f"feature{note}", y="cosine with the nearest latent")
    return figure
