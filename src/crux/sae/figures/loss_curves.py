"""The curves of the loss terms and of L0 over a training run."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from crux.plotting import GREY, PALETTE, new_figure, style_axes


def plot_loss_curves(history: Sequence[Mapping[str, float | int]], *, terms: Mapping[str, str], l0: str) -> Figure:
    """Plot the loss terms (above, on a logarithmic axis if they span a decade) and L0 (below) against the optimiser step.

    Args:
        history: rows of the training history, each with `step`; a row need not have every key.
        terms: key → label with its unit, as in `{"train/kl": "KL (nats/token)"}`; keys that no row has, or whose
            values are all zero, are left out.
        l0: key of the L0.

    Values that are not positive or not finite leave a gap.
    """
    figure = new_figure(height=5.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    drawn = {key: label for key, label in terms.items() if any(row.get(key) for row in history)}
    for n, (key, label) in enumerate(drawn.items()):
        steps, values = _select_values(history, key)
        marker = "o" if len(steps) < 2 else None
        color, dash = PALETTE[n % len(PALETTE)], ("-", "--", ":", "-.")[n % 4]
        positive = np.where(np.isfinite(values) & (values > 0), values, np.nan)
        above.plot(steps, positive, color=color, linestyle=dash, linewidth=1.4, marker=marker, label=label)
    low, high = above.dataLim.intervaly
    if high > 10 * low:
        above.set_yscale("log")
        above.yaxis.set_minor_formatter(NullFormatter())
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(above, x="", y="loss term")
    if drawn:
        above.legend(frameon=False, fontsize=8.5, ncols=2 if len(drawn) > 3 else 1)
    steps, values = _select_values(history, l0)
    below.plot(steps, values, color=PALETTE[0], linewidth=1.4, marker="o" if len(steps) < 2 else None)
    below.set_ylim(bottom=0)
    if len(values) and np.isfinite(values[-1]):
        below.annotate(
            f"{values[-1]:.1f}",
            (steps[-1], values[-1]),
            xytext=(0, 5),
            textcoords="offset points",
            ha="right",
            color=GREY,
        )
    style_axes(below, x="optimiser step", y="L0 (latents per token)")
    return figure


def _select_values(history: Sequence[Mapping[str, float | int]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps of the rows that have a key, and its values."""
    rows = [(row["step"], row[key]) for row in history if key in row]
    steps, values = zip(*rows, strict=True) if rows else ((), ())
    return np.asarray(steps, float), np.asarray(values, float)
