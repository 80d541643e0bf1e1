"""Loss and learning coefficient over a training, one above the other."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from crux.plotting import BLUE, GREY, MARKERS, PALETTE, new_figure, style_axes

Estimates = tuple[Sequence[float], Sequence[float], Sequence[float], Sequence[bool]]
"""Steps, estimates, standard errors, and whether each is to be trusted."""


def llc_training(
    loss: tuple[Sequence[float], Sequence[float]],
    estimates: Mapping[str, Estimates],
    *,
    loss_label: str,
) -> Figure:
    """Above the loss, below the estimates with three standard errors.

    Hollow: not to be trusted, because the checkpoint is no minimum or the chains left it. Those that are negative lie on the lower edge.

    Args:
        loss: steps and values.
    """
    figure = new_figure(width=7.5, height=6.2)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.6))
    above.plot(*loss, color=BLUE, linewidth=1.4)
    if min(loss[1]) > 0 and max(loss[1]) > 3 * min(loss[1]):
        above.set_yscale("log")
    style_axes(above, x="", y=loss_label)
    tops = [
        m + 3 * e for _, mean, error, good in estimates.values() for m, e, g in zip(mean, error, good, strict=True) if g
    ]
    top = 1.15 * max([*tops, 1e-9])
    for i, (name, (steps, mean, error, good)) in enumerate(estimates.items()):
        colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        shown = [min(max(m, 0.0), top) for m in mean]
        below.plot(steps, shown, color=colour, linewidth=0.8, alpha=0.6)
        for at, value, true, e, trusted in zip(steps, shown, mean, error, good, strict=True):
            below.errorbar(
                at, value, yerr=3 * e if trusted and value == true else None, color=colour, capsize=2, markersize=5,
                marker=marker, markerfacecolor=colour if trusted else "white", clip_on=False, zorder=3,
            )  # fmt: skip
        below.plot([], [], color=colour, marker=marker, label=name)
    below.plot(
        [], [], color=GREY, marker="o", markerfacecolor="white", linestyle="none", label="hollow: no minimum, or left"
    )
    below.set_ylim(0, top)
    below.set_xscale("symlog", linthresh=max(1.0, min((s for s in loss[0] if s > 0), default=1.0)))
    below.set_xlim(left=0)
    below.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    style_axes(below, x="optimiser step", y="λ̂, bars 3 standard errors")
    return figure
