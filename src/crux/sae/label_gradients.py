"""Gradients of a label loss at hook points, from the clean pass and a backward pass that computes no gradients of weights."""

from collections.abc import Collection
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.sae.losses.label import LabelTarget, label_loss
from crux.subjects.subject import Clean, Subject


def clean_with_label_gradients(
    subject: Subject,
    tokens: Int[Tensor, "batch pos"],
    *,
    hooks: Collection[str],
    target: LabelTarget,
    generator: torch.Generator,
    capture: Collection[str],
) -> tuple[Clean, dict[str, Float[Tensor, "batch pos _d"]]]:
    """Return the clean pass and, by hook point, g = ∂(summed label loss)/∂activation; `generator` draws `sampled` labels."""
    W_U, b_U, softcap = subject.unembed

    def loss(final: Tensor) -> Tensor:
        return label_loss(final, W_U, b_U=b_U, softcap=softcap, tokens=tokens, target=target, generator=generator)

    return subject.clean_with_gradients(tokens, gradient_hooks=hooks, loss=loss, capture=capture)


class LabelGradients(NamedTuple):
    """The gradients g = ∂(summed label loss)/∂activation at some hook points, which gradient SAEs or a loss use in training."""

    subject: Subject
    hooks: tuple[str, ...]
    target: LabelTarget

    def clean(
        self, tokens: Int[Tensor, "batch pos"], *, capture: Collection[str], generator: torch.Generator
    ) -> tuple[Clean, dict[str, Float[Tensor, "batch pos _d"]]]:
        """Return the clean pass and g by hook point; `generator` draws `sampled` labels."""
        return clean_with_label_gradients(
            self.subject, tokens, hooks=self.hooks, target=self.target, generator=generator, capture=capture
        )
