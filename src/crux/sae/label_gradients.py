"""The gradient of a label's loss at hook points, from the clean pass and one activation-only backward pass."""

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
    """The clean pass, and g = ∂(Σ of the labels' losses)/∂activation by hook; `generator` draws `sampled` labels."""
    W_U, b_U, softcap = subject.unembed

    def loss(final: Tensor) -> Tensor:
        return label_loss(final, W_U, b_U=b_U, softcap=softcap, tokens=tokens, target=target, generator=generator)

    return subject.clean_with_gradients(tokens, gradient_hooks=hooks, loss=loss, capture=capture)


class LabelGradients(NamedTuple):
    """g = ∂(Σ of the labels' losses)/∂activation at some hook points: what SAEs look at in training, or a loss does."""

    subject: Subject
    hooks: tuple[str, ...]
    target: LabelTarget

    def clean(
        self, tokens: Int[Tensor, "batch pos"], *, capture: Collection[str], generator: torch.Generator
    ) -> tuple[Clean, dict[str, Float[Tensor, "batch pos _d"]]]:
        """Return the clean pass and g by hook; `generator` draws `sampled` labels."""
        return clean_with_label_gradients(
            self.subject, tokens, hooks=self.hooks, target=self.target, generator=generator, capture=capture
        )
