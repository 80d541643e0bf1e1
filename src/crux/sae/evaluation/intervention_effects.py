"""The effect on the network's predictions of replacing the activation at one hook point, for many replacements of the same batch."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from crux.sae.evaluation.prediction_metrics import replace_with
from crux.sae.losses.kl import token_kl
from crux.sae.losses.readout import logits, token_chunks, token_cross_entropy
from crux.subjects.subject import Clean, Subject, Unembed

GROUP = 8
"""Number of passes whose final hidden states are in memory at once; the clean logits are computed once per group."""


class Effect(NamedTuple):
    """The predictions of a pass with a replaced activation, next to those of the clean pass."""

    name: str
    kl: Float[Tensor, "batch pos"]
    """KL(clean ‖ intervened) at each position, in nats."""
    ce: Float[Tensor, "batch pos-1"]
    """Cross-entropy of each next token, in nats; position t predicts the token at t + 1."""


@torch.no_grad()
def measure_effects(
    subject: Subject,
    tokens: Int[Tensor, "batch pos"],
    clean: Clean,
    *,
    hook: str,
    replacements: Iterable[tuple[str, Float[Tensor, "batch pos d"]]],
) -> Iterator[Effect]:
    """Yield the effect of each named replacement of the activation at `hook`; `clean` must have captured it, with `final=True`.

    The replacements are drawn from the iterable as they are needed, `GROUP` at a time.
    """
    assert clean.final is not None, "the clean pass must have been run with final=True"
    labels = F.pad(tokens[:, 1:], (0, 1)).flatten()  # the last position has no next token: its CE is dropped below
    remaining = iter(replacements)
    while group := list(islice(remaining, GROUP)):
        finals = [subject.spliced(clean, {hook: replace_with(value)}).final.flatten(0, 1) for _, value in group]
        kls, ces = _compare(clean.final.flatten(0, 1), finals, labels=labels, unembed=subject.unembed)
        for (name, _), kl, ce in zip(group, kls, ces, strict=True):
            yield Effect(name, kl.view(tokens.shape), ce.view(tokens.shape)[:, :-1])


def _compare(
    clean: Float[Tensor, "tokens d_model"],
    finals: list[Float[Tensor, "tokens d_model"]],
    *,
    labels: Int[Tensor, "tokens"],
    unembed: Unembed,
) -> tuple[list[Float[Tensor, "tokens"]], list[Float[Tensor, "tokens"]]]:
    """Return KL(clean ‖ other) and the cross-entropy of each of `finals`; the clean log-probabilities of a chunk are computed once."""
    W_U, b_U, softcap = unembed
    kls: list[list[Tensor]] = [[] for _ in finals]
    ces: list[list[Tensor]] = [[] for _ in finals]
    for part in token_chunks(len(labels), len(W_U), labels.device):
        log_p = logits(clean[part], W_U, b_U=b_U, softcap=softcap).log_softmax(-1)
        for final, kl, ce in zip(finals, kls, ces, strict=True):
            log_q = logits(final[part], W_U, b_U=b_U, softcap=softcap).log_softmax(-1)
            kl.append(token_kl(log_p, log_q))
            ce.append(token_cross_entropy(log_q, labels[part]))
    return [torch.cat(kl) for kl in kls], [torch.cat(ce) for ce in ces]
