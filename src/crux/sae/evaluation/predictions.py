"""Per-token comparison of next-token predictions: cross-entropy, KL and top-1 agreement, computed in chunks of tokens."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crux.sae.losses.kl import token_kl
from crux.sae.losses.readout import logits, token_chunks, token_cross_entropy
from crux.subjects.subject import Unembed


class Predictions(NamedTuple):
    """The comparison of the predictions of several passes, per token."""

    ce: dict[str, Float[Tensor, "tokens"]]
    """The cross-entropy −log q(label) in nats, by the name of the pass; `clean` is one of them."""
    kl: Float[Tensor, "tokens"]
    """KL(clean ‖ spliced), in nats."""
    agrees: Bool[Tensor, "tokens"]
    """True if the clean and the spliced pass have the same likeliest token."""


@torch.no_grad()
def compare_predictions(
    finals: Mapping[str, Float[Tensor, "tokens d_model"]], *, labels: Int[Tensor, "tokens"], unembed: Unembed
) -> Predictions:
    """Compare the predictions of the passes `clean`, `spliced` and any others, given their final hidden states.

    `labels` are the next tokens; the caller must ignore the results of positions that have none. The clean log-probabilities of
    a chunk are computed only once; a `tokens × vocab` tensor never exists.
    """
    W_U, b_U, softcap = unembed
    ce: dict[str, list[Tensor]] = {name: [] for name in finals}
    kl, agrees = [], []
    for part in token_chunks(labels.shape[0], W_U.shape[0], labels.device):
        log_p = logits(finals["clean"][part], W_U, b_U=b_U, softcap=softcap).log_softmax(-1)
        ce["clean"].append(token_cross_entropy(log_p, labels[part]))
        for name, final in finals.items():
            if name == "clean":
                continue
            log_q = logits(final[part], W_U, b_U=b_U, softcap=softcap).log_softmax(-1)
            ce[name].append(token_cross_entropy(log_q, labels[part]))
            if name == "spliced":
                kl.append(token_kl(log_p, log_q))
                agrees.append(log_p.argmax(-1) == log_q.argmax(-1))
    return Predictions({name: torch.cat(chunks) for name, chunks in ce.items()}, torch.cat(kl), torch.cat(agrees))
