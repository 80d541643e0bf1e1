"""Draw phase diagrams of an extra feature: trained and theoretical classes, and its norm and superposition.

Elhage et al. 2209.10652, "Superposition as a phase change".
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from crux.plotting import BLUE, ORANGE, new_figure, style_axes

CLASSES = ("not represented", "in superposition", "dedicated dimension")
CLASS_COLOURS = ("#e6e6e6", ORANGE, BLUE)
EXACT_STYLE, FIXED_STYLE = "-", ":"
X_LABEL, Y_LABEL = "density p (sparser to the right)", "importance of the extra feature\n(the others' is 1)"


class Diagram(NamedTuple):
    """The phase diagrams of one model size. The classes are 0 not represented, 1 in superposition, 2 a dedicated dimension."""

    title: str
    trained: Int[np.ndarray, "density ratio"]
    fixed_weights: Int[np.ndarray, "density ratio"]
    exact: Int[np.ndarray, "density ratio"]
    fixed_border: Float[np.ndarray, "2 density"]
    """Ratios at which the class changes from 0 to 1 and from 1 to 2, by the theory of fixed weights."""
    exact_border: Float[np.ndarray, "2 density"]


class Shares(NamedTuple):
    """The extra feature's ‖W‖ and Σ_j (Ŵ·W_j)², for one model size."""

    title: str
    norm: Float[np.ndarray, "density ratio"]
    superposition: Float[np.ndarray, "density ratio"]


def plot_phase_diagrams(
    diagrams: Sequence[Diagram], *, densities: Float[np.ndarray, "density"], ratios: Float[np.ndarray, "ratio"]
) -> Figure:
    """Draw one row per size: classes of trained models, of the theory with fixed weights, and of the exact optima.

    The boundaries of both theories are drawn on all panels.
    """
    figure = new_figure(width=11.5, height=0.9 + 3.5 * len(diagrams))
    grid = figure.subplots(len(diagrams), 3, squeeze=False, sharex=True, sharey=True)
    for row, diagram in zip(grid, diagrams, strict=True):
        panels = {
            "best of the trained models": diagram.trained,
            "theory, weights fixed": diagram.fixed_weights,
            "theory, exact optima": diagram.exact,
        }
        for axes, (title, classes) in zip(row, panels.items(), strict=True):
            _draw_pixels(axes, np.array([to_rgb(c) for c in CLASS_COLOURS])[classes], densities, ratios)
            axes.plot(densities, diagram.exact_border.T, color="black", linewidth=1.6, linestyle=EXACT_STYLE)
            axes.plot(densities, diagram.fixed_border.T, color="black", linewidth=1.4, linestyle=FIXED_STYLE)
            _label_axes(axes, f"{diagram.title}\n{title}", first=axes is row[0], last=diagram is diagrams[-1])
    keys = [Patch(facecolor=c, edgecolor="#999999", label=name) for c, name in zip(CLASS_COLOURS, CLASSES, strict=True)]
    keys += [
        Line2D([], [], color="black", linestyle=EXACT_STYLE, label="exact boundary"),
        Line2D([], [], color="black", linestyle=FIXED_STYLE, label="boundary for fixed weights"),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=5, frameon=False)
    return figure


def plot_norm_and_superposition(
    shares: Sequence[Shares], *, densities: Float[np.ndarray, "density"], ratios: Float[np.ndarray, "ratio"]
) -> Figure:
    """Draw the paper's picture: colours show how strongly the extra feature is represented and how much it shares its direction."""
    figure = new_figure(width=1.2 + 4.0 * (len(shares) + 0.7), height=3.9)
    row = figure.subplots(1, len(shares) + 1, width_ratios=[1] * len(shares) + [0.55])
    for axes, one in zip(row, shares, strict=False):
        _draw_pixels(axes, _blend(one.norm, one.superposition), densities, ratios)
        _label_axes(axes, f"{one.title}, as trained", first=axes is row[0], last=True)
    norm, shared = np.meshgrid(np.linspace(0, 1, 64), np.linspace(0, 1, 64))
    key = row[-1]
    key.imshow(_blend(norm, shared), origin="lower", extent=(0, 1, 0, 1), aspect="equal")
    style_axes(key, x=r"norm $\|W_i\|$", y=r"superposition $\sum_{j \neq i} (\hat W_i \cdot W_j)^2$", title="colours")
    key.grid(visible=False)
    return figure


def _blend(norm: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Return white for an absent feature, blue for one that shares its direction with no other, orange for one that shares it."""
    norm, shared = (np.clip(v, 0, 1)[..., None] for v in (norm, shared))
    blue, orange = np.array(to_rgb(BLUE)), np.array(to_rgb(ORANGE))
    return 1 - norm * (1 - (1 - shared) * blue - shared * orange)


def _draw_pixels(axes: Axes, colours: np.ndarray, densities: np.ndarray, ratios: np.ndarray) -> None:
    """Draw colours [density, ratio, 3] as pixels around each density and ratio, on logarithmic axes."""
    across, up = _pixel_edges(densities), _pixel_edges(ratios)
    axes.pcolormesh(across, up, colours.swapaxes(0, 1), rasterized=True)
    axes.set(xscale="log", yscale="log", xlim=(across.max(), across.min()), ylim=(up.min(), up.max()))


def _pixel_edges(centres: np.ndarray) -> np.ndarray:
    """Return the geometric means of neighbouring centres; the outer pixels are as wide as their neighbours."""
    logs = np.log(centres)
    if len(logs) == 1:
        return np.exp(logs[0] + np.array([-0.1, 0.1]))
    between = (logs[1:] + logs[:-1]) / 2
    return np.exp(np.concatenate([[2 * logs[0] - between[0]], between, [2 * logs[-1] - between[-1]]]))


def _label_axes(axes: Axes, title: str, *, first: bool, last: bool) -> None:
    style_axes(axes, x=X_LABEL if last else "", y=Y_LABEL if first else "", title=title)
    axes.grid(visible=False)
