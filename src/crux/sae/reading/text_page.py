"""The features on a page of latents that follow from the SAE and a text: densities, codes, contexts, effects on logits, neighbours."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.sae.evaluation.latents import logit_effects
from crux.sae.figures.features_page_data import Neighbours, PageColumn, SaeFeatures, TokenEffects, make_column
from crux.sae.figures.features_page_texts import ReadTokens, mark_joined
from crux.sae.geometry.nearest import find_candidates
from crux.sae.reading.contexts import count_codes, find_contexts
from crux.sae.reading.harvest import ReadText
from crux.sae.reading.page_limits import choose_limits
from crux.subjects.subject import Unembed


def describe_text_features(
    text: ReadText,
    *,
    name: str,
    latents: Int[np.ndarray, "rows"],
    directions: Float[Tensor, "rows d_model"],
    unembed: Unembed,
    read_tokens: ReadTokens,
    facts: Mapping[str, str] | None = None,
    seed: int = 0,
) -> SaeFeatures:
    """Return the features of an SAE that follow from a text and the network's unembedding; `_replace` adds what else is known.

    Args:
        text: held-out text with the codes of the SAE.
        latents: indices in the dictionary of the latents on the page.
        directions: their directions in the residual stream.
        seed: of the contexts that are drawn at random.
    """
    limits = choose_limits(len(latents))
    joined = mark_joined(text.windows, read_tokens)
    contexts = find_contexts(text, latents, counts=limits.contexts, joined=joined, seed=seed)
    return SaeFeatures(
        name=name,
        facts=dict(facts or {}),
        latents=latents,
        columns=describe_codes(text, latents),
        contexts=contexts,
        histograms=count_codes(text, latents, bins=limits.bins),
        lens=describe_lens(directions, unembed, n_top=limits.lens),
        neighbours=find_neighbours(directions, latents, n=limits.neighbours),
    )


def describe_codes(text: ReadText, latents: Int[np.ndarray, "rows"]) -> Sequence[PageColumn]:
    """Return the columns that the codes alone give: density, number of firings and largest code."""
    firings, maxima = text.codes.firings(), np.zeros(text.codes.n_latents)
    np.maximum.at(maxima, text.codes.latents, text.codes.values)
    return [
        make_column("density", firings[latents] / max(text.n_tokens, 1)),
        make_column("firings", firings[latents].astype(np.float64)),
        make_column("max", maxima[latents]),
    ]


def describe_lens(directions: Float[Tensor, "rows d_model"], unembed: Unembed, *, n_top: int) -> TokenEffects:
    """Return the tokens whose logits each direction raises and lowers directly, as the page shows them."""
    with torch.no_grad():
        effects = logit_effects(directions, unembed, n_top=n_top)
    return TokenEffects(
        effects.promoted.numpy(), effects.promoted_effects.numpy(), None,
        effects.suppressed.numpy(), effects.suppressed_effects.numpy(), None,
        "logits per unit of direction above the mean over the vocabulary, without later blocks and the final norm",
    )  # fmt: skip


@torch.no_grad()
def find_neighbours(
    directions: Float[Tensor, "rows d_model"], latents: Int[np.ndarray, "rows"], *, n: int
) -> Neighbours:
    """Return the n latents of the page whose directions have the largest cosines with each one's own, without itself."""
    unit = torch.nn.functional.normalize(directions.detach().float().nan_to_num(), dim=1)
    cosines, rows = find_candidates(unit, unit, k=n + 1)
    itself = rows == np.arange(len(rows))[:, None]
    others = np.argsort(itself, axis=1, kind="stable")[:, : min(n, len(rows) - 1)]
    return Neighbours(latents[np.take_along_axis(rows, others, 1)], np.take_along_axis(cosines, others, 1), None)
