"""Bits per UTF-8 byte: how well a language model predicts text, comparable between tokenizers."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.sae.losses.readout import chunked_cross_entropy
from crux.subjects.subject import Subject


class Window(NamedTuple):
    """A window of a document that is scored in one forward pass."""

    ids: list[int]
    """At most context + 1 ids; the model reads all but the last and predicts all but the first."""
    first: int
    """Index of the first prediction in this window that counts. Prediction t is that of ids[t + 1]; the previous window has scored
    the ids before ids[first + 1]."""


def cut_windows(ids: Sequence[int], *, context: int, stride: int) -> Iterator[Window]:
    """Yield windows over a document, in which the prediction of each id but the first counts exactly once.

    A prediction that counts is made from at least context − stride earlier ids, or from all earlier ids if there are fewer.
    """
    done = 1  # ids[:done] need no more scoring: earlier windows have scored them, or, like the first, they are not predicted
    for start in range(0, len(ids) - 1, stride):
        end = min(len(ids), start + context + 1)
        yield Window(list(ids[start:end]), done - start - 1)  # the prediction of ids[done]
        done = end
        if end == len(ids):
            return


@torch.no_grad()
def sum_nats(
    subject: Subject,
    documents: Iterable[Sequence[int]],
    *,
    end_of_text: int,
    context: int,
    stride: int,
    batch: int,
) -> float:
    """Return −Σ log p in nats over all tokens of the documents, where each document follows an end-of-text token.

    Args:
        documents: token ids without end-of-text marks; the marks themselves are not scored.
        stride: tokens between windows; a token is predicted from at least context − stride earlier tokens, or all if there are fewer.
        batch: windows per forward pass.
    """
    device = subject.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    windows = (
        window for ids in documents for window in cut_windows([end_of_text, *ids], context=context, stride=stride)
    )
    for group in _group_windows(windows, batch):
        longest = max(len(w.ids) for w in group)
        ids = torch.tensor([w.ids + [end_of_text] * (longest - len(w.ids)) for w in group], device=device)
        counts = torch.tensor(  # false for ids that an earlier window has scored, and for padding
            [[w.first <= t < len(w.ids) - 1 for t in range(longest - 1)] for w in group], device=device
        )
        total += (_measure_nats(subject, ids) * counts).sum()
    return float(total)


def to_bits_per_byte(nats: float, n_bytes: int) -> float:
    """Return nats / (bytes · ln 2), the bits per byte."""
    return nats / (n_bytes * math.log(2))


def _group_windows(items: Iterator[Window], size: int) -> Iterator[list[Window]]:
    """Yield the windows in groups of `size`; the last group may have fewer."""
    group: list[Window] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _measure_nats(subject: Subject, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos_1"]:
    """Return −log p in nats of each id but the first, given the ids before it; pos_1 is pos − 1."""
    final = subject.clean(ids[:, :-1], capture=()).final
    assert final is not None
    h, labels = final.flatten(0, 1), ids[:, 1:].flatten()
    W_U, b_U, softcap = subject.unembed
    return chunked_cross_entropy(h, W_U, b_U=b_U, softcap=softcap, labels=labels).view(len(ids), -1)
