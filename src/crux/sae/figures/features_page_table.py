"""The table of the most influential latents, for readers without scripts."""

from html import escape

import numpy as np

from crux.sae.figures.features_page_data import PageColumn
from crux.sae.figures.features_page_payload import NumberedFeatures
from crux.sae.figures.features_page_texts import Pieces

ROWS_OF_TABLE, RULES_OF_TABLE, TOKENS_OF_TABLE = 50, 3, 5

ORDER = ("influence", "density")
"""Keys of the columns by which the table is sorted: the first of them that there is."""


def render_table(features: NumberedFeatures, pieces: Pieces) -> str:
    """Return the HTML of a table of the latents with the largest influence, or with the largest density if none is known."""
    sae, texts = features.sae, [piece.text for piece in pieces.table()]
    by_key = {column.key: column for column in sae.columns}
    sorted_by = next((by_key[key] for key in ORDER if key in by_key), None)
    values = sorted_by.values if sorted_by is not None else np.zeros(len(sae.latents))
    rows = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")[:ROWS_OF_TABLE].tolist()
    columns = ["latent", *(column.label for column in sae.columns)]
    columns += ["reads"] if features.rules is not None else []
    effects = next(iter(features.effects.values()), None)
    columns += ["promotes"] if effects is not None else []
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = []
    for row in rows:
        cells = [str(sae.latents[row]), *(format_value(column, row) for column in sae.columns)]
        marks = [f"<td>{escape(cell)}</td>" for cell in cells]
        if features.rules is not None:
            marks.append(f"<td>{'<br>'.join(_rule_texts(features, texts, row))}</td>")
        if effects is not None:
            marks.append(f"<td>{_join([texts[n - 1] for n in effects[0][row, :TOKENS_OF_TABLE].tolist() if n])}</td>")
        body.append(f"<tr>{''.join(marks)}</tr>")
    by = f", by {sorted_by.label}" if sorted_by is not None else ""
    caption = (
        f"{sae.name}: {len(rows):,} of {len(sae.latents):,} latents{by}. With scripts, this page shows all of them."
    )
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def format_value(column: PageColumn, row: int) -> str:
    """Return the number of a latent as the page shows it; a dash if there is none."""
    value = float(column.values[row])
    if np.isnan(value):
        return "–"
    if column.kind == "share":
        return f"{100 * value:.3g} %"
    return f"{value:,.0f}" if column.kind in ("count", "percentile") else f"{value:.3g}"


def _rule_texts(features: NumberedFeatures, texts: list[str], row: int) -> list[str]:
    """Return the first rules of a latent as HTML."""
    rules = features.rules
    assert rules is not None
    first = int(rules.per_row[:row].sum())
    start = int(rules.lengths[:first].sum())
    found = []
    for rule in range(first, first + min(RULES_OF_TABLE, int(rules.per_row[row]))):
        end = start + int(rules.lengths[rule])
        found.append(_join([texts[piece] for piece in rules.parts[start:end].tolist()]))
        start = end
    return found


def _join(texts: list[str]) -> str:
    return "".join(f'<code dir="auto">{escape(text)}</code>' for text in texts)
