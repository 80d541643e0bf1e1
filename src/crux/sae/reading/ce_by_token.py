"""By how much the cross-entropy on each token of a context grows if the latent is ablated: what it is good for there, token by token."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.progress import progress
from crux.sae.figures.features_page_data import PageContexts
from crux.sae.losses.readout import token_chunks, token_cross_entropy
from crux.sae.reading.contexts import spread_ranges
from crux.sae.reading.harvest import ReadText
from crux.sae.reading.interventions import log_probabilities, run_pool
from crux.subjects.subject import Subject, Unembed

STRONGEST = 0
"""The group of contexts in which the changes are measured."""


@torch.no_grad()
def add_ce_changes(
    contexts: PageContexts,
    subject: Subject,
    text: ReadText,
    latents: Int[np.ndarray, "rows"],
    *,
    rows: Int[np.ndarray, "chosen"],
    hook: str,
    directions: Float[Tensor, "rows d"],
    batch: int,
) -> PageContexts:
    """Return the contexts with the changes of the cross-entropy in the strongest contexts of some latents.

    The latent is ablated, x_t − c_t w, on all tokens of the window on which it fires. The change on a token is that of −log p of this
    token given those before it, in nats; positive: the latent helps to predict it. It takes one spliced pass per context.

    Args:
        contexts: of `latents` in `text`.
        rows: the rows of the latents in question.
        hook: the hook point that the latents write.
        directions: w, the decoder rows, on the scale of the activations.
        batch: windows per pass.
    """
    width = text.windows.shape[1]
    owners = np.repeat(np.arange(len(latents)), np.diff(contexts.offsets))
    known = np.isin(owners, rows) & (contexts.groups == STRONGEST)
    chosen = np.flatnonzero(known)
    by_latent, code = text.codes.matrix().tocsc(), np.zeros(text.n_tokens, np.float32)
    changes = [np.zeros(0)]
    with progress("ablating latents in their contexts", total=len(chosen)) as advance:
        for first in range(0, len(chosen), batch):
            part = chosen[first : first + batch]
            windows, numbers = np.unique(contexts.starts[part] // width, return_inverse=True)
            c = np.zeros((len(part), width), np.float32)
            for i, context in enumerate(part.tolist()):
                latent, window = int(latents[owners[context]]), int(contexts.starts[context]) // width
                span = slice(by_latent.indptr[latent], by_latent.indptr[latent + 1])
                code[by_latent.indices[span]] = by_latent.data[span]
                c[i] = code[window * width : (window + 1) * width]
                code[by_latent.indices[span]] = 0
            pool = run_pool(subject, torch.from_numpy(text.windows[windows]), hook=hook, batch=batch)
            runs = torch.from_numpy(numbers.reshape(-1)).to(subject.device)
            w = directions[torch.from_numpy(owners[part]).to(directions.device)].to(subject.device, torch.float32)
            change = -torch.from_numpy(c).to(subject.device)[..., None] * w[:, None]
            changed = pool.run(runs, change.to(pool.x.dtype))
            shown = spread_ranges(contexts.starts[part] % width + np.arange(len(part)) * width, contexts.lengths[part])
            predicted = shown % width > 0  # all but the first token of a window
            after_first = torch.from_numpy(shown[predicted]).to(subject.device)
            increases = np.zeros(len(shown))
            increases[predicted] = _compare_ce(
                pool.final[runs].flatten(0, 1)[after_first - 1], changed.flatten(0, 1)[after_first - 1],
                labels=pool.tokens[runs].flatten()[after_first], unembed=subject.unembed,
            )  # fmt: skip
            changes.append(increases)
            advance(len(part))
    return contexts._replace(ce_known=known, ce_changes=np.concatenate(changes))


def _compare_ce(
    clean: Float[Tensor, "tokens d_model"],
    changed: Float[Tensor, "tokens d_model"],
    *,
    labels: Int[Tensor, "tokens"],
    unembed: Unembed,
) -> np.ndarray:
    """Return the increase of the cross-entropy of the labels, given final hidden states."""
    increases = [np.zeros(0)]
    for part in token_chunks(len(labels), len(unembed.W_U), labels.device):
        before, after = (
            token_cross_entropy(log_probabilities(final[part], unembed), labels[part]) for final in (clean, changed)
        )
        increases.append((after - before).cpu().numpy())
    return np.concatenate(increases)
