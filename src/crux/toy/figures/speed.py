"""Draw the time saved by training many toy models as one program, against the batch size."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from crux.plotting import BLUE, GREY, new_figure, style_axes


def plot_program_speed(batches: Sequence[int], shares: Sequence[float], *, n_instances: int) -> Figure:
    """Draw the duration of one step of all instances together, as a share of their separate steps, against the batch size."""
    figure = new_figure(width=5.5, height=3.6)
    axes = figure.subplots()
    axes.plot(batches, shares, color=BLUE, marker="o", linewidth=2)
    axes.axhline(1 / 3, color=GREY, linestyle="--", linewidth=1)
    axes.annotate("a third", (batches[0], 1 / 3), ha="left", va="bottom", fontsize=8, color=GREY)
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [f"{batch:,}" for batch in batches])
    axes.set_ylim(0, 1.1 * max(*shares, 1 / 3))
    style_axes(axes, x="batch (samples per step)", y=f"time of {n_instances} instances,\none program / one by one")
    return figure
