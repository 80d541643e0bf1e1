"""Figure of the share of each latent's direction outside the subspace that the network reads, per training loss."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from crux.plotting import GREY, PALETTE, new_figure, style_axes

HALF_WIDTH = 0.32
"""Half the width of a column of latents."""


def dictionary_outside(
    shares: Mapping[str, np.ndarray], *, weighted: Mapping[str, float], chance: float, subspace: str
) -> Figure:
    """Plot one dot per living latent, sorted, in one column per SAE or loss; the thick line is the weighted mean.

    Args:
        shares: shares of the latents in each column, 0 to 1.
        weighted: mean share of each column, weighted by the strength with which each latent writes.
        chance: the expected share of a random direction.
        subspace: name of the subspace, for the title.
    """
    figure = new_figure(width=2.2 + 1.3 * len(shares), height=3.8)
    axes = figure.subplots()
    for i, (name, share) in enumerate(shares.items()):
        hue = PALETTE[i % len(PALETTE)]
        x = np.full(1, i) if len(share) == 1 else np.linspace(i - HALF_WIDTH, i + HALF_WIDTH, len(share))
        size = float(np.clip(400 / len(share), 2, 22))
        axes.scatter(x, np.sort(share), s=size, color=hue, alpha=0.7, linewidths=0)
        axes.hlines(weighted[name], i - HALF_WIDTH - 0.08, i + HALF_WIDTH + 0.08, color=hue, linewidth=2.5)
        axes.annotate(
            f"{weighted[name]:.2f}", (i + HALF_WIDTH + 0.1, weighted[name]), fontsize=8, color=hue, va="center"
        )
    axes.axhline(chance, color=GREY, linewidth=1, linestyle="--")
    axes.annotate("a random direction", (1, chance), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                  fontsize=7, color=GREY)  # fmt: skip
    axes.set_xticks(range(len(shares)), list(shares), fontsize=8, rotation=0 if len(shares) < 7 else 30)
    axes.set_xlim(-0.6, len(shares) - 0.2)
    axes.set_ylim(-0.03, 1.05)
    style_axes(axes, x="", y="share of each direction", title=f"outside of {subspace}")
    return figure
