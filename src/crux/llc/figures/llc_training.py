"""Figure of loss and learning coefficient over a training run."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from crux.plotting import BLUE, GREY, MARKERS, PALETTE, new_figure, style_axes

Estimates = tuple[Sequence[float], Sequence[float], Sequence[float], Sequence[bool]]
"""Steps, estimates, standard errors, and whether each estimate is reliable."""


def llc_training(
    loss: tuple[Sequence[float], Sequence[float]],
    estimates: Mapping[str, Estimates],
    *,
    loss_label: str,
) -> Figure:
    """Draw the loss in the upper panel, and in the lower one the estimates with three standard errors.

    Hollow markers are unreliable: the checkpoint is not a minimum, or chains left its basin. Negative estimates are drawn at 0.

    Args:
        loss: steps and values.
        estimates: steps, estimates, standard errors and reliability, by name.
    """
    figure = new_figure(width=7.5, height=6.2)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.6))
    above.plot(*loss, color=BLUE, linewidth=1.4)
    if min(loss[1]) > 0 and max(loss[1]) > 3 * min(loss[1]):
        above.set_yscale("log")
    style_axes(above, x="", y=loss_label)
    # unreliable estimates may be huge: only the bars of reliable ones determine the axis
    bar_tops = [
        value + 3 * e
        for _, mean, error, reliable in estimates.values()
        for value, e, trusted in zip(mean, error, reliable, strict=True)
        if trusted
    ]
    top = 1.15 * max([*bar_tops, 1e-9])
    for i, (name, (steps, mean, error, reliable)) in enumerate(estimates.items()):
        colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        clipped = [min(max(m, 0.0), top) for m in mean]
        below.plot(steps, clipped, color=colour, linewidth=0.8, alpha=0.6)
        for step, value, unclipped, e, trusted in zip(steps, clipped, mean, error, reliable, strict=True):
            below.errorbar(
                step, value, yerr=3 * e if trusted and value == unclipped else None, color=colour, capsize=2, markersize=5,
                marker=marker, markerfacecolor=colour if trusted else "white", clip_on=False, zorder=3,
            )  # fmt: skip
        below.plot([], [], color=colour, marker=marker, label=name)
    below.plot(
        [],
        [],
        color=GREY,
        marker="o",
        markerfacecolor="white",
        linestyle="none",
        label="hollow: not a minimum, or basin left",
    )
    below.set_ylim(0, top)
    below.set_xscale("symlog", linthresh=max(1.0, min((s for s in loss[0] if s > 0), default=1.0)))
    below.set_xlim(left=0)
    below.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    style_axes(below, x="optimiser step", y="λ̂, bars 3 standard errors")
    return figure
