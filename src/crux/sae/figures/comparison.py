"""The figure of a comparison of SAEs: what equally many rules recover."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from crux.plotting import GREY, MARKERS, PALETTE, new_figure, style_axes


def draw_comparison(tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Return the figures of a comparison by name; none for a part that was not computed."""
    return {"equal_rules": plot_equal_rules(tables["equal_rules"])} if "equal_rules" in tables else {}


def plot_equal_rules(table: pd.DataFrame) -> Figure:
    """Return cross-entropy against the number of rules: one line per SAE, and dashed its cross-entropy without rules."""
    figure = new_figure()
    axes = figure.subplots()
    rules = table[(table["rules"] > 0) & (table["SAE"] != "–")]
    for i, (name, rows) in enumerate(rules.groupby("SAE", sort=False)):
        colour = PALETTE[i % len(PALETTE)]
        axes.plot(
            rows["rules"], rows["CE"], marker=MARKERS[i % len(MARKERS)], color=colour, label=str(name), markersize=5
        )
        of_sae = table.loc[(table["SAE"] == name) & (table["codes"] == "sae"), "CE"]
        axes.axhline(float(of_sae.iloc[0]), color=colour, linestyle="--", linewidth=1.0)
    clean = table.loc[table["codes"] == "clean", "CE"]
    axes.axhline(float(clean.iloc[0]), color=GREY, linewidth=1.0)
    axes.text(0.995, float(clean.iloc[0]), "clean", transform=axes.get_yaxis_transform(), fontsize=8, color=GREY,
              ha="right", va="top")  # fmt: skip
    axes.margins(y=0.1)
    axes.set_xscale("log")
    style_axes(
        axes, x="rules of all latents together", y="cross-entropy, nats per token",
        title="Codes replaced by what rules predict (dashed: the SAE's own codes)",
    )  # fmt: skip
    axes.legend(fontsize=8, frameon=False)
    return figure
