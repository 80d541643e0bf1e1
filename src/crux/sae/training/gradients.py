"""The gradient that SAEs look at in training: where, and of which labels."""

from collections.abc import Collection
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.sae.label_gradients import clean_with_label_gradients
from crux.sae.losses.label import Target
from crux.subjects.subject import Clean, Subject


class LabelGradients(NamedTuple):
    """g = ∂(Σ of the labels' losses)/∂activation at some hook points."""

    subject: Subject
    hooks: tuple[str, ...]
    target: Target

    def clean(
        self, tokens: Int[Tensor, "batch pos"], *, capture: Collection[str], generator: torch.Generator
    ) -> tuple[Clean, dict[str, Float[Tensor, "batch pos _d"]]]:
        """The clean pass and g by hook; `generator` draws `sampled` labels."""
        return clean_with_label_gradients(
            self.subject, tokens, hooks=self.hooks, target=self.target, generator=generator, capture=capture
        )
