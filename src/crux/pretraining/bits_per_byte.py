"""How well a language model predicts text, whatever its tokenizer: bits per UTF-8 byte."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.sae.losses.readout import chunked_cross_entropy
from crux.subjects.subject import Subject


class Window(NamedTuple):
    """A stretch of a document: what is read, what is to be predicted, and from where on that counts."""

    ids: list[int]
    """At most context + 1 ids; all but the last are read, all but the first predicted."""
    first: int
    """Predictions before this one were scored by the window before."""


def windows(ids: Sequence[int], *, context: int, stride: int) -> Iterator[Window]:
    """Cut `ids` so that each but the first is predicted once, after at least context − stride others where there are any."""
    scored = 1
    for start in range(0, len(ids) - 1, stride):
        end = min(len(ids), start + context + 1)
        yield Window(list(ids[start:end]), scored - start - 1)
        scored = end
        if end == len(ids):
            return


@torch.no_grad()
def total_nats(
    subject: Subject,
    documents: Iterable[Sequence[int]],
    *,
    end_of_text: int,
    context: int,
    stride: int,
    batch: int,
) -> float:
    """Return −Σ log p over all tokens of the documents, each read after an end-of-text token, in nats.

    Args:
        documents: token ids without end-of-text marks; the marks themselves are not scored.
        stride: tokens between windows; a token is predicted from at least context − stride before it, where there are any.
        batch: windows per forward pass.
    """
    device = subject.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    cut = (w for ids in documents for w in windows([end_of_text, *ids], context=context, stride=stride))
    for group in _groups(cut, batch):
        longest = max(len(w.ids) for w in group)
        ids = torch.tensor([w.ids + [end_of_text] * (longest - len(w.ids)) for w in group], device=device)
        counts = torch.tensor(
            [[w.first <= t < len(w.ids) - 1 for t in range(longest - 1)] for w in group], device=device
        )
        total += (_token_nats(subject, ids) * counts).sum()
    return float(total)


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Return nats / (bytes · ln 2)."""
    return nats / (n_bytes * math.log(2))


def _groups(items: Iterator[Window], size: int) -> Iterator[list[Window]]:
    group: list[Window] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _token_nats(subject: Subject, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos_1"]:
    final = subject.clean(ids[:, :-1], capture=()).final
    assert final is not None
    h, labels = final.flatten(0, 1), ids[:, 1:].flatten()
    W_U, b_U, softcap = subject.unembed
    return chunked_cross_entropy(h, W_U, b_U=b_U, softcap=softcap, labels=labels).view(len(ids), -1)
