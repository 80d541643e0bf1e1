"""The histogram of firing densities, which shows dead latents and latents that are always on."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from crux.plotting import GREY, PALETTE, new_figure, style_axes


def plot_densities(densities: ArrayLike, *, n_tokens: int) -> Figure:
    """Plot a histogram of log10(firing density) over the alive latents; the title has the number of dead latents.

    Args:
        densities: share of tokens on which each latent fires, 0 for dead latents.
        n_tokens: number of tokens; the axis starts at the smallest possible density, 1/n_tokens.
    """
    shares = np.asarray(densities, float)
    alive = np.log10(shares[shares > 0])
    floor = -np.log10(n_tokens)  # of a latent that fires on one token
    figure = new_figure()
    axes = figure.subplots()
    axes.hist(
        alive, bins=np.linspace(floor - 0.05, 0.0, 51).tolist(), color=PALETTE[0], edgecolor="white", linewidth=0.4
    )
    if alive.size:
        median = float(np.median(alive))
        axes.axvline(median, color=PALETTE[1], linewidth=1.4, linestyle="--")
        axes.text(
            median,
            0.97,
            f" median {_format_share(10**median)} ",
            transform=axes.get_xaxis_transform(),
            color=PALETTE[1],
            va="top",
            ha="left" if median < floor / 2 else "right",  # on the side where there is more room
        )
    dead = shares.size - alive.size
    percent = f"{100 * dead / shares.size:.1f} %"
    style_axes(
        axes,
        x="log10 firing density (share of tokens)",
        y="latents",
        title=f"{alive.size:,} of {shares.size:,} latents fire in {n_tokens:,} tokens; {dead:,} ({percent}) never do",
    )
    axes.axvline(floor, color=GREY, linewidth=0.8, linestyle=":")
    axes.text(floor, 0.85, " once", transform=axes.get_xaxis_transform(), color=GREY, fontsize=8, va="top")
    axes.margins(y=0.15)  # room for the text
    axes.set_xlim(floor - 0.15, 0.05)
    return figure


def _format_share(share: float) -> str:
    return f"{100 * share:.2g} % of tokens"
