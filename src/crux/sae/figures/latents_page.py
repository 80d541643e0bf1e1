"""A static HTML page of latents: how often each latent fires, on which text, and which tokens it makes more likely.

The page is self-contained: it has no scripts and loads nothing, and all text and tokens are escaped.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from crux.sae.figures.latents_page_style import STYLE
from crux.sae.figures.visible_text import make_visible
from crux.subjects.token_texts import TokenText

NO_TOKEN = -1
"""Fills the places of contexts at which there is no token."""
_LEGEND = (
    "A context is the part of a held-out text around the token on which the latent fires most (framed); thin lines separate "
    "tokens, and the shading shows the size of the code. A character that several tokens make is underlined and has one stripe "
    "per token. ⟨e4⟩ is a byte that is part of no character. Raises, lowers: the logits that one unit of the latent's direction "
    "adds directly, without later blocks and the final norm, relative to the mean over the vocabulary."
)

ReadTokens = Callable[[Sequence[int]], Sequence[TokenText]]
"""A function that returns the text of each token of a sequence."""


def render_latents_page(
    *,
    title: str,
    facts: Mapping[str, str],
    read_tokens: ReadTokens,
    latents: ArrayLike,
    densities: ArrayLike,
    tokens: ArrayLike,
    activations: ArrayLike,
    peak: int,
    margin: int,
    promoted: ArrayLike,
    promoted_effects: ArrayLike,
    suppressed: ArrayLike,
    suppressed_effects: ArrayLike,
) -> str:
    """Return the HTML of the page.

    Args:
        title: heading, such as the run's name.
        facts: name → value, shown under the heading.
        read_tokens: returns the text of each token of a sequence.
        latents: (latents,) indices in the dictionary, in the order of the page.
        densities: (latents,) share of tokens on which each latent fires.
        tokens: (latents, contexts, width) ids of the contexts, strongest first; −1 if there is no token.
        activations: (latents, contexts, width) the code of the latent on each of them.
        peak: index along `width` of the token with the largest code.
        margin: number of tokens at both ends of a context that are shown only if they complete a character.
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
        contexts = _render_contexts(ids[n], codes[n], peak=peak, margin=margin, read_tokens=read_tokens)
        columns = (
            _render_effects("raises", effects[0][n], effects[1][n], read_tokens)
            + _render_effects("lowers", effects[2][n], effects[3][n], read_tokens)
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


def _render_contexts(ids: np.ndarray, codes: np.ndarray, *, peak: int, margin: int, read_tokens: ReadTokens) -> str:
    largest = codes.max(initial=0) or 1.0
    lines = []
    for row, code in zip(ids, codes, strict=True):
        if row[peak] == NO_TOKEN:  # there are fewer contexts
            continue
        (places,) = np.nonzero(row != NO_TOKEN)
        tokens = [
            _Token(int(row[place]), *text, code=float(code[place]), is_peak=bool(place == peak))
            for place, text in zip(places, read_tokens(row[places].tolist()), strict=True)
        ]
        first, end = (int(np.searchsorted(places, place)) for place in (margin, len(row) - margin))
        groups = _group_by_character(tokens, first, end)
        text = "".join(_render_joined(g, largest) if len(g) > 1 else _render_single(g[0], largest) for g in groups)
        lines.append(f'<p><b>{code[peak]:.2f}</b><span class="text" dir="auto">{text}</span></p>')
    return "".join(lines) or '<p class="facts">It does not fire in the held-out text.</p>'


class _Token(NamedTuple):
    """A token of a context."""

    id: int
    text: str
    joined: bool
    """True if a character has a part in the token before and a part in this one."""
    code: float
    is_peak: bool


def _group_by_character(tokens: Sequence[_Token], first: int, end: int) -> list[list[_Token]]:
    """Return the tokens from `first` to before `end`, and those around them that complete the first and the last character.

    Tokens that are parts of the same characters are one group; every other token is a group of its own.
    """
    while first > 0 and tokens[first].joined:
        first -= 1
    while end < len(tokens) and tokens[end].joined:
        end += 1
    groups: list[list[_Token]] = []
    for token in tokens[first:end]:
        if token.joined and groups:
            groups[-1].append(token)
        else:
            groups.append([token])
    return groups


def _render_single(token: _Token, largest: float) -> str:
    name = "mark" if token.is_peak else "span"
    shade = f' style="--a:{token.code / largest:.2f}" title="{token.code:.3g}"' if token.code > 0 else ""
    return f"<{name}{shade}>{_render_text(token.text, token.id)}</{name}>"


def _render_joined(tokens: Sequence[_Token], largest: float) -> str:
    """Return the characters of several tokens as one element, with one stripe of shading per token."""
    text, n = "".join(token.text for token in tokens), len(tokens)
    right_to_left = any(unicodedata.bidirectional(symbol) in ("R", "AL") for symbol in text)
    stripes = ",".join(
        f"rgba(var(--hot),{token.code / largest:.2f}) {100 * i / n:.4g}% {100 * (i + 1) / n:.4g}%"
        for i, token in enumerate(reversed(tokens) if right_to_left else tokens)
    )
    name, peak = "span", ""
    for i, token in enumerate(reversed(tokens) if right_to_left else tokens):
        if token.is_peak:
            name, peak = "mark", f";--peak:{i}"
    codes = " · ".join(f"{token.code:.3g}" for token in tokens)
    return (
        f'<{name} class="joined" style="--n:{n};--codes:linear-gradient(90deg,{stripes}){peak}" '
        f'title="{n} tokens: {codes}">{escape(make_visible(text))}</{name}>'
    )


def _render_effects(heading: str, ids: np.ndarray, effects: np.ndarray, read_tokens: ReadTokens) -> str:
    rows = "".join(
        f'<tr><td><code dir="auto">{_render_text(read_tokens([token])[0].text, token)}</code></td><td>{effect:+.2f}</td></tr>'
        for token, effect in zip(ids.tolist(), effects, strict=True)
    )
    return f"<table><caption>{heading}</caption>{rows}</table>"


def _render_text(text: str, token: int) -> str:
    """Return the text of a token as visible, escaped text, or the number of the token if it has no text."""
    return escape(make_visible(text)) or f"⟨token {token}⟩"


def _describe_density(share: float) -> str:
    if share <= 0:
        return "fires on no token"
    return f"fires on {_format_percent(share)} of tokens" + (f" (1 in {1 / share:,.0f})" if share < 0.1 else "")


def _format_percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"
