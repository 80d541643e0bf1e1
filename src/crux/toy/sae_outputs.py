"""Train SAEs end to end on a toy model: the loss on its output, which is real numbers instead of logits, and the training data."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from crux.sae.losses.loss import Loss
from crux.sae.losses.mse import mse
from crux.sae.losses.options import E2E
from crux.sae.losses.step import TrainingStep
from crux.sae.training.activations import Activations
from crux.toy.features import FeatureBatches
from crux.toy.subject import ToySubject


class OutputLoss(Loss[E2E]):
    """The loss kl · MSE(y(ĥ), y(h)) + reconstruction · MSE(ĥ, h) + λ · penalty; the MSE of the output takes the place of the KL.

    Both MSEs are means over samples and dimensions.
    """

    term_labels: ClassVar = {"mse": "MSE", "output_mse": "MSE of the output"}

    def __init__(self, options: E2E, *, subject: ToySubject) -> None:
        super().__init__(options)
        self.subject = subject

    def __call__(self, step: TrainingStep) -> Float[Tensor, "runs"]:
        loss = self.options.kl * self.output_mse(step)
        if self.options.reconstruction:
            loss = loss + self.options.reconstruction * step.mse()
        return loss + step.sparsity()

    def output_mse(self, step: TrainingStep) -> Float[Tensor, "runs"]:
        """Return the MSE between the outputs with and without the SAE."""
        ((_, passed, h, weight),) = step.by_sae()
        with torch.no_grad():
            clean = self.subject.output(h)
        return step.record("output_mse", [mse(self.subject.output(passed.reconstruction), clean, weight=weight)])


class HiddenActivations(Sequence[Activations]):
    """The hidden activations of batches of features, on which SAEs on a toy model are trained."""

    def __init__(self, features: FeatureBatches, *, subject: ToySubject, hook: str) -> None:
        self.features, self.subject, self.hook = features, subject, hook

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, i: int) -> Activations:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Activations({self.hook: self.subject.hidden(self.features[i][0])}, {})
