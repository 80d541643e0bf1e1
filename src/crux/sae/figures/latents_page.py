"""A static HTML page of latents: how often each latent fires, on which text, and which tokens it makes more likely.

The page is self-contained: it has no scripts and loads nothing, and all text and tokens are escaped.
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import ArrayLike

from crux.sae.figures.latents_page_style import STYLE

NO_TOKEN = -1
"""Fills the places of contexts at which there is no token."""
_LEGEND = (
    "A context is the part of a held-out text around the token on which the latent fires most (framed); the shading shows "
    "the size of the code. Raises, lowers: the logits that one unit of the latent's direction adds directly, without later "
    "blocks and the final norm, relative to the mean over the vocabulary."
)
_VISIBLE_SYMBOLS = str.maketrans({"\n": "↵", "\r": "␍", "\t": "⇥", "\v": "␋", "\f": "␌"})


def render_latents_page(
    *,
    title: str,
    facts: Mapping[str, str],
    decode: Callable[[int], str],
    latents: ArrayLike,
    densities: ArrayLike,
    tokens: ArrayLike,
    activations: ArrayLike,
    peak: int,
    promoted: ArrayLike,
    promoted_effects: ArrayLike,
    suppressed: ArrayLike,
    suppressed_effects: ArrayLike,
) -> str:
    """Return the HTML of the page.

    Args:
        title: heading, such as the run's name.
        facts: name → value, shown under the heading.
        decode: token id → its text.
        latents: (latents,) indices in the dictionary, in the order of the page.
        densities: (latents,) share of tokens on which each latent fires.
        tokens: (latents, contexts, width) ids of the contexts, strongest first; −1 if there is no token.
        activations: (latents, contexts, width) the code of the latent on each of them.
        peak: index along `width` of the token with the largest code.
        promoted: (latents, top) ids of the tokens with the largest logit effects.
        promoted_effects: (latents, top) these effects.
        suppressed: (latents, top) ids of the tokens with the smallest logit effects.
        suppressed_effects: (latents, top) these effects.
    """
    index, density = np.asarray(latents), np.asarray(densities, float)
    ids, codes = np.asarray(tokens), np.asarray(activations, float)
    effects = [np.asarray(a) for a in (promoted, promoted_effects, suppressed, suppressed_effects)]
    sections = []
    for n, latent in enumerate(index):
        contexts = _render_contexts(ids[n], codes[n], peak=peak, decode=decode)
        columns = (
            _render_effects("raises", effects[0][n], effects[1][n], decode)
            + _render_effects("lowers", effects[2][n], effects[3][n], decode)
        )  # fmt: skip
        sections.append(
            f'<section id="latent-{latent}"><h2>latent {latent}</h2><p class="facts">{_describe_density(density[n])} · '
            f"largest code {codes[n].max(initial=0):.3g}</p>"
            f'<div class="latent"><div class="contexts">{contexts}</div>'
            f'<div class="effects">{columns}</div></div></section>'
        )
    links = "".join(
        f'<a href="#latent-{latent}">{latent}<small>{_format_percent(share)}</small></a>'
        for latent, share in zip(index, density, strict=True)
    )
    fact_list = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>"
        f"<dl>{fact_list}</dl><nav>{links}</nav>"
        f'<p class="facts">{_LEGEND}</p>\n' + "\n".join(sections) + "</body></html>\n"
    )


def _render_contexts(ids: np.ndarray, codes: np.ndarray, *, peak: int, decode: Callable[[int], str]) -> str:
    largest = codes.max(initial=0) or 1.0
    lines = []
    for row, code in zip(ids, codes, strict=True):
        if row[peak] == NO_TOKEN:  # there are fewer contexts
            continue
        words = []
        for place, (token, value) in enumerate(zip(row, code, strict=True)):
            if token == NO_TOKEN:
                continue
            shade = f' style="--a:{value / largest:.2f}" title="{value:.3g}"' if value > 0 else ""
            tag = "mark" if place == peak else "span"
            words.append(f"<{tag}{shade}>{_render_token(decode, int(token))}</{tag}>")
        lines.append(f'<p><b>{code[peak]:.2f}</b><span class="text">{"".join(words)}</span></p>')
    return "".join(lines) or '<p class="facts">It does not fire in the held-out text.</p>'


def _render_effects(
    heading: str, ids: Sequence[int] | np.ndarray, effects: np.ndarray, decode: Callable[[int], str]
) -> str:
    rows = "".join(
        f"<tr><td><code>{_render_token(decode, int(token))}</code></td><td>{effect:+.2f}</td></tr>"
        for token, effect in zip(ids, effects, strict=True)
    )
    return f"<table><caption>{heading}</caption>{rows}</table>"


def _render_token(decode: Callable[[int], str], token: int) -> str:
    """Return a token as visible, escaped text, or its number if its text is empty."""
    text = decode(token).translate(_VISIBLE_SYMBOLS)
    return escape(text) if text else f"⟨{token}⟩"


def _describe_density(share: float) -> str:
    if share <= 0:
        return "fires on no token"
    return f"fires on {_format_percent(share)} of tokens" + (f" (1 in {1 / share:,.0f})" if share < 0.1 else "")


def _format_percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"
