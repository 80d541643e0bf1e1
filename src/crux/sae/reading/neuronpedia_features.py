"""The latents of an SAE as Neuronpedia's import format has them."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crux.sae.figures.features_page_data import PageContexts, SaeFeatures, TokenEffects
from crux.sae.figures.features_page_texts import ReadTokens
from crux.sae.formats.neuronpedia import NeuronpediaContext, NeuronpediaFeature
from crux.sae.reading.harvest import ReadText
from crux.subjects.subject import Unembed

LATENTS_PER_BLOCK, LOGIT_BINS = 256, 50


@torch.no_grad()
def neuronpedia_features(
    sae: SaeFeatures,
    text: ReadText,
    *,
    directions: Float[Tensor, "rows d_model"],
    unembed: Unembed,
    read_tokens: ReadTokens,
    with_vectors: bool,
) -> Iterator[NeuronpediaFeature]:
    """Yield the latents of a page, with their exact codes, in the order of the page.

    Args:
        sae: features with contexts, histograms and direct effects, as `describe_text_features` returns them.
        text: the text in which the contexts are.
        directions: the latents' directions in the residual stream.
        with_vectors: export the directions, which Neuronpedia needs for steering.

    Raises:
        ValueError: if the features have no contexts, histograms or direct effects.
    """
    if sae.contexts is None or sae.histograms is None or sae.lens is None:
        raise ValueError("an export for Neuronpedia needs contexts, histograms and direct effects")
    texts: dict[int, str] = {}

    def name(token: int) -> str:
        if token not in texts:
            texts[token] = read_tokens([token])[0].text or f"⟨token {token}⟩"
        return texts[token]

    matrix = text.codes.matrix().tocsc()
    W_U = unembed.W_U.float()
    for first in range(0, len(sae.latents), LATENTS_PER_BLOCK):
        block = directions[first : first + LATENTS_PER_BLOCK].to(W_U)
        effects = block @ W_U.T
        effects = (effects - effects.mean(-1, keepdim=True)).cpu().numpy()
        for row, logits in enumerate(effects, start=first):
            latent = int(sae.latents[row])
            tokens, codes = (
                part[matrix.indptr[latent] : matrix.indptr[latent + 1]] for part in (matrix.indices, matrix.data)
            )
            maximum = float(sae.contexts.maxima[row])
            edges = np.linspace(0, maximum, sae.histograms.shape[1] + 1)
            heights, logit_edges = np.histogram(logits, LOGIT_BINS)
            yield NeuronpediaFeature(
                latent=latent,
                density=len(tokens) / max(text.n_tokens, 1),
                maximum=maximum,
                vector=block[row - first].tolist() if with_vectors else [],
                promoted=_pair(sae.lens, row, name, promoted=True),
                suppressed=_pair(sae.lens, row, name, promoted=False),
                code_histogram=(sae.histograms[row].tolist(), _middles(edges)),
                logit_histogram=(heights.tolist(), _middles(logit_edges)),
                neighbours=_neighbours(sae, row),
                contexts=list(_contexts(sae.contexts, row, tokens, codes, text, read_tokens)),
                explanation=_explain(sae, row, name),
            )


def _contexts(
    contexts: PageContexts, row: int, tokens: np.ndarray, codes: np.ndarray, text: ReadText, read_tokens: ReadTokens
) -> Iterator[NeuronpediaContext]:
    ranked, n = np.sort(codes)[::-1], len(codes)
    n_groups = len(contexts.group_names)  # the strongest, quantiles, random
    for i in range(contexts.offsets[row], contexts.offsets[row + 1]):
        group, start, length = int(contexts.groups[i]), int(contexts.starts[i]), int(contexts.lengths[i])
        values = np.zeros(length)
        inside = slice(*np.searchsorted(tokens, [start, start + length]))
        values[tokens[inside] - start] = codes[inside]
        first, last = 0, n
        if 0 < group < n_groups - 1:
            first, last = ((n * k) // (n_groups - 2) for k in (group - 1, group))
        parts = read_tokens(text.tokens[start : start + length].tolist())
        yield NeuronpediaContext(
            tokens=[part.text for part in parts],
            values=values.tolist(),
            peak=int(contexts.peaks[i]),
            bounds=(float(ranked[last - 1]), float(ranked[first])),
            contains=-1.0 if group == 0 else (last - first) / text.n_tokens,
        )


def _pair(
    effects: TokenEffects, row: int, name: Callable[[int], str], *, promoted: bool
) -> Sequence[tuple[str, float]]:
    ids, values = (
        (effects.promoted, effects.promoted_effects) if promoted else (effects.suppressed, effects.suppressed_effects)
    )
    return [
        (name(token), value) for token, value in zip(ids[row].tolist(), values[row].tolist(), strict=True) if token >= 0
    ]


def _neighbours(sae: SaeFeatures, row: int) -> Sequence[tuple[int, float]]:
    if sae.neighbours is None:
        return []
    pairs = zip(sae.neighbours.latents[row].tolist(), sae.neighbours.cosines[row].tolist(), strict=True)
    return [(latent, cosine) for latent, cosine in pairs if latent >= 0]


def _explain(sae: SaeFeatures, row: int, name: Callable[[int], str]) -> str:
    """Return the explanation in words, or else the first three rules; empty if there are none."""
    if sae.explanations is not None and sae.explanations[row]:
        return sae.explanations[row]
    rules = sae.rules[row][:3] if sae.rules is not None else []
    return "; ".join(
        "".join(part if isinstance(part, str) else f"“{name(part)}”" for part in rule.parts) for rule in rules
    )


def _middles(edges: np.ndarray) -> list[float]:
    return ((edges[1:] + edges[:-1]) / 2).tolist()
