"""One HTML file that shows all latents of an SAE, or of two SAEs: it needs no server and no network, and opens from the disk.

All data are in the file, as base64 of gzip (`packed_arrays`). The browser reads the index when the page opens, and the rest 64 latents at
a time. Nothing in the data becomes markup: scripts set text only, and the policy in the page's head forbids every request and every script
but the page's own. Without scripts the page shows a table of the most influential latents.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from crux.config.progress import track
from crux.sae.figures.features_page_data import FeaturesPage
from crux.sae.figures.features_page_payload import (
    ROWS_PER_CHUNK,
    NumberedFeatures,
    chunk_arrays,
    chunk_types,
    index_arrays,
    number_features,
)
from crux.sae.figures.features_page_store import store_texts
from crux.sae.figures.features_page_table import render_table
from crux.sae.figures.features_page_texts import Pieces, ReadTokens, show_text
from crux.sae.figures.packed_arrays import ArrayTypes, compress, pack_arrays

VERSION = 1
"""Version of the data in the page; changes with their layout."""

SCRIPTS = ("unpack.js", "data.js", "formats.js", "lists.js", "contexts.js", "card.js", "table.js", "plot.js", "main.js")
"""The parts of the page's script, in `page_scripts/`."""

STORE_TYPES = (("pieces", "u4"),)
PAIR_TYPES = (("first", "u4"), ("second", "u4"), ("cosines", "f12"))


def render_features_page(page: FeaturesPage, *, read_tokens: ReadTokens) -> str:
    """Return the HTML of the page.

    Numbers that the list shows have 12 significant bits (relative error 2⁻¹²), those of rules and effects 5 to 7, and codes are in 1/255
    of the latent's maximum.

    Args:
        page: what it shows.
        read_tokens: returns the text of each token of a sequence, such as `TokenTexts(tokenizer)`.
    """
    saes = [page.first, *([page.second] if page.second is not None else [])]
    pieces = Pieces(read_tokens)
    stores, placed = store_texts([sae.contexts for sae in saes], pieces)
    features = [number_features(sae, place, pieces) for sae, place in zip(saes, placed, strict=True)]
    blocks: dict[str, str] = {}
    described = [_add_sae(blocks, name, one) for name, one in zip("ab", features, strict=False)]
    for i, store in enumerate(stores):
        blocks[f"store-{i}"] = compress(pack_arrays({"pieces": store.pieces}, STORE_TYPES))
    manifest = {
        "version": VERSION,
        "title": show_text(page.title),
        "facts": _show_facts(page.facts),
        "rows_per_chunk": ROWS_PER_CHUNK,
        "saes": described,
        "stores": [{"types": STORE_TYPES, "context": store.context} for store in stores],
        "pairs": _add_pairs(blocks, page),
        "pieces": _describe_pieces(pieces),
        "id": hashlib.blake2b("".join(blocks.values()).encode(), digest_size=8).hexdigest(),
    }
    blocks = {"manifest": compress([json.dumps(manifest, separators=(",", ":")).encode()]), **blocks}
    return _render_document(page, features, pieces, blocks)


def _add_sae(blocks: dict[str, str], name: str, features: NumberedFeatures) -> dict[str, Any]:
    """Add the blocks of an SAE, and return what the page has to know to read them."""
    sae = features.sae
    index, index_types = index_arrays(features)
    blocks[f"{name}-index"] = compress(pack_arrays(index, index_types))
    types = chunk_types(features)
    chunks = list(chunk_arrays(features))
    for i, chunk in enumerate(track(chunks, "writing the page of latents") if len(chunks) > 100 else chunks):
        blocks[f"{name}-{i}"] = compress(pack_arrays(chunk, types))
    return {
        "name": show_text(sae.name),
        "facts": _show_facts(sae.facts),
        "n_rows": len(sae.latents),
        "columns": [
            {"key": c.key, "label": show_text(c.label), "note": show_text(c.note), "kind": c.kind, "log": c.log}
            for c in sae.columns
        ],
        "index_types": index_types,
        "chunk_types": types,
        "store": features.placed.store if features.placed is not None else None,
        "groups": list(sae.contexts.group_names) if sae.contexts is not None else [],
        "bins": sae.histograms.shape[1] if sae.histograms is not None else 0,
        "measured": _describe_effects(sae.measured),
        "lens": _describe_effects(sae.lens),
        "neighbours": sae.neighbours.latents.shape[1] if sae.neighbours is not None else 0,
        "explanations": [show_text(text) for text in sae.explanations] if sae.explanations is not None else None,
    }


def _describe_effects(effects: Any) -> dict[str, Any] | None:
    return None if effects is None else {"top": effects.promoted.shape[1], "unit": show_text(effects.unit)}


def _add_pairs(blocks: dict[str, str], page: FeaturesPage) -> dict[str, Any] | None:
    if page.pairs is None:
        return None
    arrays = {"first": page.pairs.first, "second": page.pairs.second, "cosines": page.pairs.cosines}
    types: ArrayTypes = PAIR_TYPES
    if page.pairs.correlations is not None:
        arrays["correlations"] = page.pairs.correlations
        types = (*types, ("correlations", "f12"))
    blocks["pairs"] = compress(pack_arrays(arrays, types))
    return {"types": types}


def _describe_pieces(pieces: Pieces) -> dict[str, Any]:
    table = pieces.table()
    return {
        "texts": [piece.text for piece in table],
        "tokens": [piece.token for piece in table],
        "joined": [i for i, piece in enumerate(table) if piece.joined],
    }


def _show_facts(facts: Any) -> list[tuple[str, str]]:
    return [(show_text(name), show_text(value)) for name, value in facts.items()]


def _render_document(
    page: FeaturesPage, features: Sequence[NumberedFeatures], pieces: Pieces, blocks: dict[str, str]
) -> str:
    script = "(() => {\n'use strict';\n" + "\n".join(map(_read_script, SCRIPTS)) + "\n})();\n"
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{allowed}'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
    )
    title = escape(show_text(page.title))
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _show_facts(page.facts))
    data = "\n".join(f'<script type="text/plain" id="{name}">{text}</script>' for name, text in blocks.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{title}</title>\n<style>{_read_script('style.css')}</style></head>\n<body>\n"
        f'<div id="app" hidden></div>\n<section id="plain"><h1>{title}</h1><dl class="facts">{facts}</dl>'
        f"{''.join(render_table(one, pieces) for one in features)}</section>\n{data}\n<script>{script}</script>\n</body></html>\n"
    )


def _read_script(name: str) -> str:
    return files("crux.sae.figures").joinpath("page_scripts", name).read_text("utf-8")
