"""The latents of two SAEs in a plane, PCA or UMAP (Braun et al. 2405.12241, figures 19 to 21)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from crux.plotting import PALETTE, new_figure, style_axes


class PlaneOfTwo(NamedTuple):
    """The latents of two SAEs in the plane of their joint dictionary."""

    title: str
    labels: tuple[str, str]
    colors: tuple[int, int]
    """Places in the palette, so that a kind of SAE has the same colour as in the histograms."""
    points: tuple[Float[np.ndarray, "_a 2"], Float[np.ndarray, "_b 2"]]
    mixing: float
    """Excess of neighbours from the own SAE in the space of the directions; 0 is mixed."""
    mixing_in_plane: float
    """The same in the plane."""


def plot_planes(planes: Sequence[PlaneOfTwo], *, axis: str) -> Figure:
    """Plot each pair of SAEs in a panel; the numbers above it say how far the two are mixed, which the eye cannot.

    Args:
        axis: name of the axes, such as `principal component`.
    """
    columns = min(len(planes), 3)
    rows = -(-len(planes) // columns)
    figure = new_figure(width=0.5 + 4.4 * columns, height=0.4 + 4.4 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, plane in zip(grid, planes, strict=False):
        generator = np.random.default_rng(0)  # the SAE that is drawn last would hide the other one
        both, owner = np.concatenate(plane.points), np.repeat([0, 1], [len(points) for points in plane.points])
        order = generator.permutation(len(both))
        pair = [PALETTE[n % len(PALETTE)] for n in plane.colors]
        colors = np.array(pair)[owner[order]]
        size = float(np.clip(6000 / len(both), 0.5, 12))
        axes.scatter(*both[order].T, s=size, c=colors.tolist(), linewidths=0, alpha=0.6, rasterized=True)
        for n, label in enumerate(plane.labels):
            axes.scatter([], [], s=25, color=pair[n], label=f"{label} ({len(plane.points[n]):,})")
        axes.legend(loc="upper right", framealpha=0.85, edgecolor="white", fontsize=8.5)
        numbers = f"{plane.mixing:+.2f} in the space, {plane.mixing_in_plane:+.2f} in this plane"
        style_axes(axes, x=f"{axis} 1", y=f"{axis} 2", title=f"{plane.title}\nown neighbours above mixture:\n{numbers}")
        axes.title.set_fontsize(8.5)
    for axes in grid[len(planes) :]:
        axes.remove()
    return figure
