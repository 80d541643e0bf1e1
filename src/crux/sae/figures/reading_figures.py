"""The figures of a reading: scores next to controls, influence against score, rewritten CE, and the residual error next to noise."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from crux.plotting import GREY, MARKERS, PALETTE, new_figure, style_axes


def draw_reading(
    features: pd.DataFrame, tables: Mapping[str, Mapping[str, pd.DataFrame]], *, n_rules: int
) -> dict[str, Figure]:
    """Return the figures of those parts that were computed, by name.

    Args:
        features: one row per latent (features.parquet).
        tables: the tables of each part, by the names of part and table.
        n_rules: number of rules per latent in `rho@<n>`.
    """
    every = {name: table for part in tables.values() for name, table in part.items()}
    figures: dict[str, Figure] = {}
    if "scores" in every:
        figures["scores"] = plot_scores(every["scores"])
    if "influence" in features and f"rho@{n_rules}" in features:
        figures["influence"] = plot_influence(features, n_rules=n_rules)
    if "rewriting" in every:
        figures["rewriting"] = plot_rewriting(every["rewriting"])
    if "residual" in every:
        figures["residual"] = plot_residual(every["residual"])
    return figures


def plot_scores(scores: pd.DataFrame) -> Figure:
    """Plot the mean ρ over the number of rules per latent, one line per dictionary: the SAE's latents and their controls."""
    figure = new_figure(width=7.5)
    axes = figure.subplots()
    sizes = [int(name.partition("@")[2]) for name in scores.columns if str(name).startswith("rho@")]
    for i, (_, row) in enumerate(scores.iterrows()):
        values = [row[f"rho@{size}"] for size in sizes]
        is_sae = str(row["dictionary"]).startswith("SAE")
        axes.plot(
            sizes, values, marker=MARKERS[i % len(MARKERS)], markersize=4, linewidth=2.2 if is_sae else 1.0,
            color=PALETTE[i % len(PALETTE)], linestyle="-" if i < len(PALETTE) else "--", label=str(row["dictionary"]),
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    style_axes(
        axes, x="rules per latent", y="mean Pearson correlation ρ on held-out text",
        title="Predicting codes from rules: latents and controls of equal density",
    )  # fmt: skip
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def plot_influence(features: pd.DataFrame, *, n_rules: int) -> Figure:
    """Plot each latent's influence against the score of its rules; colour shows its density."""
    shown = features[(features["influence"] > 0) & features[f"rho@{n_rules}"].notna()]
    figure = new_figure()
    axes = figure.subplots()
    dots = axes.scatter(
        shown[f"rho@{n_rules}"], shown["influence"], c=np.log10(shown["density"]), s=7, cmap="viridis", linewidths=0
    )
    axes.set_yscale("log")
    style_axes(
        axes, x=f"ρ of {n_rules} rules on held-out text", y="influence: KL of ablation, nats per token",
        title=f"{len(shown):,} latents by how well rules explain them, and what the network does with them",
    )  # fmt: skip
    figure.colorbar(dots, ax=axes, label="log10 density")
    return figure


def plot_rewriting(rewriting: pd.DataFrame) -> Figure:
    """Plot the CE over the number of stored values: rules without and with the decoder, and means of suffixes without a dictionary."""
    figure = new_figure()
    axes = figure.subplots()
    is_direct = rewriting["replacement"].str.contains("means of suffixes")
    is_rules = rewriting["replacement"].str.startswith("rules") & ~is_direct
    direct = rewriting.loc[is_direct].drop_duplicates(subset=["stored"]).sort_values(by="stored")
    rules = rewriting.loc[is_rules].sort_values(by="stored")
    for i, (x, y, label) in enumerate((
        (rules["stored"], rules["ce"], "rules"),
        (rules["stored_with_decoder"], rules["ce"], "rules, decoder counted"),
        (direct["stored"], direct["ce"], "no SAE: means by suffix"),
    )):  # fmt: skip
        axes.plot(x, y, marker=MARKERS[i], color=PALETTE[i], label=label, markersize=5)
    for name, label, style, side in (
        ("clean", "clean", "-", "top"), ("sae", "SAE", "--", "bottom"), ("mean", "mean ablation", ":", "bottom"),
    ):  # fmt: skip
        ce = rewriting.loc[rewriting["replacement"] == name, "ce"]
        if len(ce):
            axes.axhline(float(ce.iloc[0]), color=GREY, linestyle=style, linewidth=1.0)
            axes.text(
                0.995, float(ce.iloc[0]), label, transform=axes.get_yaxis_transform(), fontsize=8, color=GREY, ha="right",
                va=side,
            )  # fmt: skip
    axes.margins(y=0.12)
    axes.set_xscale("log")
    style_axes(
        axes, x="stored numbers", y="cross-entropy, nats per token", title="Codes replaced by what rules predict"
    )
    axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0.0, 0.14))
    return figure


def plot_residual(residual: pd.DataFrame) -> Figure:
    """Plot the KL of the SAE's error and of noise with the same norm per token, with standard errors over windows."""
    rows = residual[residual["name"] != "clean"].iloc[::-1]
    figure = new_figure(height=0.32 * len(rows) + 1.2)
    axes = figure.subplots()
    names = ["the SAE" if name == "sae" else str(name).replace("_", " ") for name in rows["name"]]
    colours = [PALETTE[1] if name == "sae" else PALETTE[0] for name in rows["name"]]
    axes.barh(
        names, rows["kl"], xerr=rows["standard_error"], color=colours, error_kw={"linewidth": 0.8, "ecolor": GREY}
    )
    style_axes(
        axes, x="KL(clean ‖ replaced) at positions ≥ 1, nats per token", y="",
        title="The SAE's error e = x̂ − x, and what is added in its place",
    )  # fmt: skip
    return figure
