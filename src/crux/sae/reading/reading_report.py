"""The report of a reading in Markdown: the tables of its parts, and single latents."""

import pandas as pd

from crux.config.markdown import markdown_table
from crux.sae.reading.read_latents import LatentsReading
from crux.sae.reading.section import Reading

TITLES = {
    "scores": "What activates the latents: rules from {fit:,} training tokens, scored on {held_out:,} held-out tokens (means over latents)",
    "controls": "Latents minus the controls that stand for them, with the standard error over latents",
    "warnings": "Scores that do not tell the latents from a control",
    "llm": "Explanations by an LLM, judged on held-out text: means over latents next to their controls",
    "llm_counts": "What the LLM was asked",
    "llm_explanations": "Explanations by an LLM",
    "influence": "What the network does with them: KL in nats per token of ablating a latent, to second order",
    "ablations": "Exact ablations, to check the influence",
    "effects": "Effects on the predictions of the most influential latents: score on held-out contexts, and the logit lens",
    "steering": "Steering at an equal KL budget: means over directions",
    "rewriting": "Rewritten CE: codes replaced by what their rules predict, next to means of the activation by suffix",
    "residual": "The residual error next to noise of equal norm per token: KL in nats at positions ≥ 1",
    "residual_ratios": "Ratios of mean KLs: 1 means as harmful as noise of that kind",
    "probing": "Sparse probing of properties of the text: AUROC ± half of the 95 % interval over splits; chance is 0.5",
    "saebench": "SAEBench's core metrics, by its definitions (saebench_core.json)",
    "energy": "Use per unit of energy (1: an isotropic vector), and shares of energy in the directions that are read or vary most",
    "directions": "Single directions: how well the SAE keeps them at position 0 and elsewhere, and what the network loses without them",
    "geometry": "Similarities of the dictionary, with chance levels (isotropic and covariance-shaped directions)",
}
"""Headings of the tables, in their order."""

N_SHOWN = 20
"""Number of latents in the report."""

MAX_ROWS = 40
"""Rows of a table that are shown; the whole table is in the run folder."""


def write_report(found: LatentsReading, reading: Reading, *, n_rules: int) -> str:
    """Return the report: one table per part, then the most influential (or densest) latents with their first rules."""
    tables = {name: table for section in found.sections.values() for name, table in section.tables.items()}
    sizes = {"fit": reading.harvest.fit.n_tokens, "held_out": reading.harvest.held_out.n_tokens}
    parts = []
    for name, title in TITLES.items():
        if name in tables and len(tables[name]):
            parts += [f"## {title.format(**sizes)}", table_to_markdown(tables[name].head(MAX_ROWS))]
    parts += [f"## The first {N_SHOWN} latents by influence", latents_to_markdown(found.features, n_rules=n_rules)]
    return "\n\n".join(parts)


def summarise_reading(found: LatentsReading, *, n_rules: int) -> str:
    """Return the main numbers of a reading in a few lines, each next to what it should be compared with."""
    metrics, tables = found.metrics, {k: t for section in found.sections.values() for k, t in section.tables.items()}
    controls, chance = "", metrics.get("matched_cos/shaped", float("nan"))
    if "controls" in tables and len(tables["controls"]):
        rows = tables["controls"].query(f"score == 'rho@{n_rules}' and control in ['whitened', 'example']")
        pairs = [f"{row['control']} directions {row['controls']:.3f}" for _, row in rows.iterrows()]
        controls = f" ({'; '.join(pairs)})" if pairs else ""
    lines = []
    for name, text in (
        (f"rho@{n_rules}", f"ρ of predicted and true codes, {n_rules} rules per latent: {{:.3f}}{controls}"),
        ("unexplained_latents", "latents that no rule explains: {:.0f} of " + f"{metrics.get('scored_latents', 0):.0f} scored"),
        (f"rewritten_recovered@{n_rules}", f"share of the SAE's CE that {n_rules} rules per latent recover: {{:.3f}}"),
        ("influence_log_pearson", "influence against exact ablations, log-Pearson: {:.3f}"),
        ("dead_weight_share", "energy in latents that the network hardly reads: {:.2%}"),
        ("effects_held_out_score", "measured effects on tokens, held-out score: {:.3f}"),
        ("residual/rho_iso", "KL of the SAE's error relative to isotropic noise of equal norm: {:.2f}"),
        ("matched_cos", f"cosine of matched latents of the two SAEs: {{:.3f}} (chance {chance:.3f})"),
    ):  # fmt: skip
        if name in metrics:
            lines.append(text.format(metrics[name]))
    lines += [f"careful: {text}" for text in tables["warnings"]["warning"]] if "warnings" in tables else []
    return "\n".join([*lines, "all tables: report.md in the run folder"])


def table_to_markdown(table: pd.DataFrame) -> str:
    """Return a table in Markdown with four significant digits; what has no value is `–`."""
    return markdown_table(
        [str(c) for c in table.columns], [[_cell(v) for v in row] for row in table.itertuples(index=False)]
    )


def latents_to_markdown(features: pd.DataFrame, *, n_rules: int) -> str:
    """Return some latents with their density, scores, first rules and most promoted tokens."""
    order = "influence" if "influence" in features else "density"
    shown = features.sort_values(order, ascending=False, kind="stable").head(N_SHOWN)
    header = ["latent", "density", f"ρ@{n_rules}", "influence", "rules", "promotes"]
    rows = [
        [
            latent, _cell(row["density"]), _cell(row[f"rho@{n_rules}"]), _cell(row.get("influence")),
            _words(row["rules"], 3), _words(row.get("promoted"), 5),
        ]
        for latent, row in shown.iterrows()
    ]  # fmt: skip
    return markdown_table(header, rows)


def _words(values: object, n: int) -> str:
    return "; ".join(str(v) for v in list(values)[:n]) if hasattr(values, "__len__") else "–"  # pyright: ignore[reportArgumentType]


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
